package client

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestConfigIsKeptForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "mobula", "control.json")
	_, err := LoadConfig(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, want := range []Config{
		{URL: "https://10.0.0.1:8100", Token: "s3cret", CA: "-----BEGIN CERTIFICATE-----\n"},
		{URL: "http://127.0.0.1:8100"},
	} {
		require.NoError(t, SaveConfig(path, want))
		got, err := LoadConfig(path)
		require.NoError(t, err)
		require.Equal(t, want, got)
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
		entries, err := os.ReadDir(filepath.Dir(path))
		require.NoError(t, err)
		require.Len(t, entries, 1, "no temporary file is left")
	}
}

func TestBadConfigsNameTheirFile(t *testing.T) {
	for name, data := range map[string]string{
		"empty": "", "not JSON": "url: x", "no url": `{"token":"x"}`, "unknown field": `{"url":"x","tokn":"y"}`, "more": `{"url":"x"}{}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "control.json")
			require.NoError(t, os.WriteFile(path, []byte(data), 0o600))
			_, err := LoadConfig(path)
			require.ErrorContains(t, err, path)
		})
	}
}

func TestConfigThatCannotBeWrittenIsAnError(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Error(t, SaveConfig(filepath.Join(file, "control.json"), Config{URL: "x"}))
	taken := filepath.Join(dir, "taken")
	require.NoError(t, os.MkdirAll(filepath.Join(taken, "x"), 0o700))
	require.Error(t, SaveConfig(taken, Config{URL: "x"}), "a folder is in its place")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "no temporary file is left")
}

func TestDefaultConfigPath(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", "/home/a/.settings")
	path, err := DefaultConfigPath()
	require.NoError(t, err)
	require.Equal(t, "/home/a/.settings/mobula/control.json", path)
}

func FuzzDecodeConfig(f *testing.F) {
	for _, seed := range []string{`{"url":"http://a","token":"b","ca":"c"}`, "", "{}", "null", `{"url":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := DecodeConfig(data); err == nil && c.URL == "" {
			t.Fatal("a config without a URL")
		}
	})
}
