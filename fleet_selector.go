package mobula

import (
	"math"
	"strconv"
	"strings"
)

// checkSelector says what is wrong with a label selector, as kubectl get -l takes them.
func checkSelector(selector string) string {
	rest := strings.TrimSpace(selector)
	if rest == "" {
		return "there is nothing in it, which would select all"
	}
	for {
		var one, problem string
		if one, rest, problem = cutRequirement(rest); problem == "" {
			problem = checkRequirement(strings.TrimSpace(one))
		}
		if problem != "" || rest == "" {
			return problem
		}
		rest = rest[1:] // the comma
	}
}

// cutRequirement splits a selector before the first comma that is not in parentheses.
func cutRequirement(s string) (one, rest, problem string) {
	open := false
	for i := range len(s) {
		switch c := s[i]; {
		case c == '(' && open, c == ')' && !open:
			return "", "", "parentheses don't match"
		case c == '(':
			open = true
		case c == ')':
			open = false
		case c == ',' && !open:
			return s[:i], s[i:], ""
		}
	}
	if open {
		return "", "", "parentheses don't match"
	}
	return s, "", ""
}

// checkRequirement checks key, !key, key=value, key==value, key!=value, key>1, key<1, key in (a,b) or key notin (a,b).
func checkRequirement(s string) string {
	if s == "" {
		return "there is nothing between two commas"
	}
	if key, not := strings.CutPrefix(s, "!"); not {
		return checkLabelKey(strings.TrimSpace(key))
	}
	i := strings.IndexAny(s, "=!<> \t(")
	if i < 0 {
		return checkLabelKey(s)
	}
	key, rest := s[:i], strings.TrimSpace(s[i:])
	if problem := checkLabelKey(key); problem != "" {
		return problem
	}
	for _, sign := range []string{"==", "!=", "=", ">", "<"} {
		value, found := strings.CutPrefix(rest, sign)
		if !found {
			continue
		}
		if value = strings.TrimSpace(value); sign == ">" || sign == "<" {
			if _, err := strconv.ParseInt(value, 10, 64); err != nil {
				return "want a whole number after " + sign
			}
		}
		return checkLabelValue(value)
	}
	word, list, isSet := strings.Cut(rest, "(")
	if word = strings.TrimSpace(word); !isSet || word != "in" && word != "notin" {
		return "want =, ==, !=, in (...) or notin (...) after " + quote(key)
	}
	list, after, _ := strings.Cut(list, ")")
	if after != "" {
		return "want a comma after )"
	}
	for value := range strings.SplitSeq(list, ",") {
		if problem := checkLabelValue(strings.TrimSpace(value)); problem != "" {
			return problem
		}
	}
	return ""
}

func checkLabelKey(key string) string {
	prefix, name, prefixed := strings.Cut(key, "/")
	if !prefixed {
		prefix, name = "", key
	}
	if prefixed && !isSubdomain(prefix) || name == "" || !isLabelValue(name) {
		return "no label is called " + quote(key)
	}
	return ""
}

func checkLabelValue(value string) string {
	if !isLabelValue(value) {
		return "no label has the value " + quote(value)
	}
	return ""
}

// isLabelValue tells whether s can be a label's value: nothing, or at most 63 characters.
func isLabelValue(s string) bool {
	const ends = letters + digits
	return s == "" || len(s) <= 63 && only(s, ends+"-_.") && only(s[:1], ends) && only(s[len(s)-1:], ends)
}

// isSubdomain tells whether s can be the name of most objects (DNS subdomain).
func isSubdomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !only(label, lower+digits+"-") || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return len(s) <= 253
}

// isPortName tells whether s can be the name of a container's port.
func isPortName(s string) bool {
	return isLabel(s) && len(s) <= 15 && strings.ContainsAny(s, lower) && !strings.Contains(s, "--")
}

// isShare tells whether s is a number of replicas, a percentage or nothing.
func isShare(s string) bool {
	number, percent := strings.CutSuffix(s, "%")
	n, err := strconv.ParseUint(number, 10, 16)
	return s == "" || err == nil && (n <= MaxReplicas && !percent || n <= 100 && percent)
}

// quantity reads what Kubernetes calls a quantity, as 500m, 1.5, 16Gi or 1e3. Only what is above 0 is one here. What it gives is
// for comparing.
func quantity(s string) (float64, bool) {
	digitsEnd := len(s) - len(strings.TrimLeft(s, digits+"."))
	n, err := strconv.ParseFloat(s[:digitsEnd], 64)
	if err != nil || n <= 0 {
		return 0, false
	}
	factor, ok := quantityFactor(s[digitsEnd:])
	return n * factor, ok
}

func quantityFactor(suffix string) (float64, bool) {
	if suffix == "" {
		return 1, true
	}
	if i := strings.Index("n u m k M G T P E", suffix); len(suffix) == 1 && i >= 0 && suffix != " " {
		exponent := [...]int{-9, -6, -3, 3, 6, 9, 12, 15, 18}[i/2]
		return math.Pow10(exponent), true
	}
	if i := strings.Index("KiMiGiTiPiEi", suffix); len(suffix) == 2 && i >= 0 && i%2 == 0 {
		return math.Pow(2, float64(10*(i/2+1))), true
	}
	if exponent := suffix[1:]; exponent != "" && (suffix[0] == 'e' || suffix[0] == 'E') {
		n, err := strconv.ParseInt(exponent, 10, 8)
		return math.Pow10(int(n)), err == nil && n >= -18 && n <= 18
	}
	return 0, false
}
