package app

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/mobula-serve/mobula/control/client"
)

// banner says where everything is and what to type.
func (a *app) banner(ctx context.Context, client *chatServer, here *local) {
	c := newConsole(a.stdout)
	models, err := client.models(ctx)
	if err != nil || len(models) == 0 {
		models = []string{"MODEL"}
	}
	quoted, _ := json.Marshal(models[0])
	urls := here.engineURLs(ctx)
	chat := "mobula chat"
	if client.base != defaultURL {
		chat += " --url " + client.base
	}
	body := fmt.Sprintf(`{"model":%s,"messages":[{"role":"user","content":"Hello!"}]}`, quoted)
	python := fmt.Sprintf(`from openai import OpenAI; print(OpenAI(base_url="%s/v1", api_key="-").chat.completions.create(model=%s, messages=[{"role":"user","content":"Hello!"}]).choices[0].message.content)`, client.base, quoted)

	c.line("%s %s: policy %s", c.strong("mobula"), thisBuild().Version, here.fleet.Router.Policy.Name)
	c.line("")
	field := func(label, text string) { c.line("  %s  %s", c.strong(fmt.Sprintf("%-10s", label)), text) }
	field("OpenAI API", c.good(client.base+"/v1"))
	field("models", strings.Join(models, ", "))
	field("metrics", client.base+"/metrics")
	field("control", here.access.URL)
	field("engines", strings.Join(urls, " "))
	if len(here.o.models) == 0 && here.o.simulated() > 0 {
		field("", c.dim("simulated: they need no GPU and make their text up; for a real model: mobula up --model NAME"))
	}
	c.line("")
	c.line("  curl %s/v1/chat/completions -H 'Content-Type: application/json' -d %s", client.base, shellQuote(body))
	c.line("")
	c.line("  python -c %s", shellQuote(python))
	c.line("")
	c.line("  %s", chat)
	c.line("  %s", "mobula get"+here.configFlag())
	c.line("")
	if !client.ready(ctx) {
		c.line("%s no engine answers yet", c.bad("warning:"))
	}
	c.line("%s", c.dim("Ctrl-C stops everything."))
}

// shellQuote makes one word of s for a POSIX shell.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// engineURLs are those of the file and those that were started.
func (h *local) engineURLs(ctx context.Context) []string {
	var urls []string
	for _, e := range h.fleet.Platform.Static.Endpoints {
		urls = append(urls, e.URL)
	}
	if v, err := h.plane.control.View(ctx, 0); err == nil {
		for _, r := range v.Replicas {
			if r.URL != "" {
				urls = append(urls, r.URL)
			}
		}
	}
	return urls
}

// configFlag is what commands need to find this control plane and not the one in the user's settings.
func (h *local) configFlag() string {
	usual, err := client.DefaultConfigPath()
	if err != nil {
		return ""
	}
	if _, err := os.Stat(usual); err != nil {
		return ""
	}
	path, err := localAccess()
	if err != nil {
		return ""
	}
	return " --config " + path
}
