package engine

import (
	"regexp"
	"slices"
	"strings"
)

// maxReason cuts a reason, in bytes.
const maxReason = 300

// exceptionLine is the last line of a Python traceback: "ValueError: …", "torch.OutOfMemoryError: …".
const exceptionLine = `^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b(?:: .*)?$`

// prefixes are what vLLM's logger and its processes put before a line: "(EngineCore_DP0 pid=7) ERROR 11-22 19:40:43 [core.py:900] ".
const prefixes = `^(?:\([\w ]+(?: [\w=]+)*\) ?)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.,]+ \[[^\]]*\] ?)?`

// FailureReason picks out of the last lines of an engine's log, oldest first, the one that tells
// a person why it ended: what vLLM is known to say, else the last exception, else the last line. It is
// empty when there are no lines.
func FailureReason(tail []string) string {
	prefix, exception := regexp.MustCompile(prefixes), regexp.MustCompile(exceptionLine)
	lines := make([]string, 0, len(tail))
	for _, l := range tail {
		if l = strings.TrimSpace(prefix.ReplaceAllString(l, "")); l != "" && !strings.HasPrefix(l, "hint: ") { // mobula's own, after the error
			lines = append(lines, l)
		}
	}
	for _, cause := range causes() {
		for _, l := range lines {
			if strings.Contains(strings.ToLower(l), cause) {
				return cut(l)
			}
		}
	}
	// A wrapper such as "Engine core initialization failed. See root cause above." comes last and says nothing.
	for _, hollow := range []bool{false, true} {
		for _, l := range slices.Backward(lines) {
			if exception.MatchString(l) && isHollow(l) == hollow {
				return cut(l)
			}
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return cut(lines[len(lines)-1])
}

// causes are parts of lines, in lower case, that tell more than any exception after them. Those that
// explain others come first.
func causes() []string {
	return []string{
		"cuda out of memory",
		"no available memory for the cache blocks",
		"free memory on device",
		"no space left on device",
		"address already in use",
		"does not appear to have a file named",
		"not a valid model identifier",
		"is not a local folder",
		"unrecognized arguments",
	}
}

func isHollow(line string) bool {
	lower := strings.ToLower(line)
	return strings.Contains(lower, "see root cause above") || strings.Contains(lower, "stack trace for root cause") ||
		strings.Contains(lower, "stack trace above for the root cause") || strings.Contains(lower, "engine core initialization failed") ||
		strings.HasPrefix(lower, "systemexit") || strings.HasPrefix(lower, "keyboardinterrupt")
}

func cut(line string) string {
	if len(line) <= maxReason {
		return line
	}
	return strings.ToValidUTF8(line[:maxReason], "") + "…"
}

// AddressInUse tells that reason, as FailureReason gives it, is that another process has the port.
func AddressInUse(reason string) bool {
	return strings.Contains(strings.ToLower(reason), "address already in use")
}
