package mobula_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// pages gives the repository's Markdown files by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		content, err := os.ReadFile(path)
		all[path] = string(content)
		return err
	}))
	require.Contains(t, all, "README.md")
	return all
}

func TestLinksOfPagesLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for page, content := range pages(t) {
		for _, found := range link.FindAllStringSubmatch(content, -1) {
			target, anchor, _ := strings.Cut(found[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := page
			if target != "" {
				file = filepath.Join(filepath.Dir(page), target)
			}
			_, err := os.Stat(file)
			require.NoError(t, err, "%s: %s", page, found[0])
			if anchor == "" || filepath.Ext(file) != ".md" {
				continue
			}
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Contains(t, anchors(string(text)), anchor, "%s: %s", page, found[0])
		}
	}
}

// anchors are those that GitHub makes of a page's headings.
func anchors(page string) []string {
	var all []string
	for _, heading := range regexp.MustCompile(`(?m)^#+ +(.*)$`).FindAllStringSubmatch(page, -1) {
		name := strings.ToLower(strings.TrimSpace(heading[1]))
		name = regexp.MustCompile(`[^\p{L}\p{N}\s_-]`).ReplaceAllString(name, "")
		name = strings.ReplaceAll(name, " ", "-")
		all = append(all, name)
	}
	return all
}

// What a page says a test proves, it proves: the test is there.
func TestTestsThatPagesNameAreThere(t *testing.T) {
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?((?:Test|Fuzz|Benchmark)\w+)\(`)
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		content, err := os.ReadFile(path)
		for _, found := range declared.FindAllStringSubmatch(string(content), -1) {
			there[found[1]] = true
		}
		return err
	}))
	named := map[string]string{}
	for page, content := range pages(t) {
		for _, found := range regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`").FindAllStringSubmatch(content, -1) {
			named[found[1]] = page
		}
	}
	require.NotEmpty(t, named)
	for _, test := range slices.Sorted(maps.Keys(named)) {
		require.True(t, there[test], "%s names %s", named[test], test)
	}
}
