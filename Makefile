# The targets that a newcomer would guess. `make help` lists them.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

# Every Go module of the repository, the root first.
MODULES := . $(patsubst %/go.mod,%,$(wildcard operator/go.mod dialer/*/go.mod test/*/go.mod tools/images/go.mod))

# How many packages `make test` tests at once. The machines that run it have
# two cores.
P ?= 2

# Packages whose tests put whole hubs, agents and proxies together, several at a time,
# and hold what is promised in seconds: they are tested one after the other, alone.
WORLDS := ./internal/hub/hubtest ./internal/hub/attack

# Tests with the race detector. The linter has vetted the code. scrypt, which makes keys
# of passphrases and is slow on purpose, takes ten times as long when every access to
# memory is watched, and shares none of it: it is left out.
RACE := -race -vet=off -count=1 -gcflags=golang.org/x/crypto/scrypt=-race=false

.PHONY: help
help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: build
build: ## Build the programs into bin/.
	go build -trimpath -o bin/ ./cmd/...

.PHONY: test
test: test-race test-e2e test-kube ## Run every test: unit tests with the race detector, end to end, real Kubernetes.

.PHONY: test-unit
test-unit: ## Run the unit tests without the race detector: the quick loop.
	go test -p $(P) ./...

.PHONY: test-race
test-race: ## Run the unit tests and the fuzz tests' seeds with the race detector.
	@echo '==> unit tests with the race detector'
	go test $(RACE) -p $(P) -timeout 15m $$(go list ./... | grep -vxF "$$(go list $(WORLDS))")
	go test $(RACE) -p 1 -timeout 15m $(WORLDS)
	cd test/bench && go test -vet=off -count=1 -p $(P) -timeout 5m ./...
	cd dialer/kube && go test $(RACE) -p $(P) -timeout 10m ./...
	cd operator && go test $(RACE) -p $(P) -timeout 10m ./...
	cd tools/images && go test -vet=off -count=1 -p $(P) -timeout 5m ./...
	cd test/guides && go test -vet=off -count=1 -timeout 5m ./doc

.PHONY: test-e2e
test-e2e: ## Run the real programs against PostgreSQL, Redis, nginx and curl.
	@echo '==> end-to-end tests'
	cd test/e2e && go test -vet=off -count=1 -p 1 -parallel 8 -timeout 25m -v ./...

.PHONY: test-kube
test-kube: ## Run the real programs against a real Kubernetes (root; the first run builds it).
	@echo '==> Kubernetes tests'
	cd test/kube && go test -vet=off -count=1 -p 1 -parallel 8 -timeout 60m -v ./...

# Not a part of `make test`: a cold build of these programs takes more than half an hour on two
# busy cores. That each marked block of a guide has a test is looked at there all the same.
.PHONY: test-guides
test-guides: ## Run the programs of the guides as these configure them (root; the first run builds them).
	@echo '==> guides with the real programs'
	cd test/guides && go test -count=1 -p 1 -timeout 90m -v ./...

.PHONY: bench
bench: ## Measure the tunnel beside its references; BENCH=-quick for a short look.
	cd test/bench && go run . $(BENCH)

.PHONY: lint
lint: ## Check formatting and run go vet and the pinned golangci-lint on every module.
	@linter=$$(tools/golangci-lint.sh); \
	for module in $(MODULES); do \
		echo "lint $$module"; \
		(cd $$module && go vet ./... && nice "$$linter" run --config $(CURDIR)/.golangci.yml ./...); \
	done

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities, where their database can be reached.
	@tools/vulncheck.sh

.PHONY: release
release: ## Build a release into dist/, byte for byte the same everywhere: VERSION=v1.2.3.
	@tools/release.sh "$(VERSION)" dist

.PHONY: images
images: ## Build container images into dist/images/, without Docker: VERSION=v1.2.3.
	@tools/release.sh --images "$(VERSION)" dist

.PHONY: fmt
fmt: ## Format the Go files.
	gofmt -w $$(git ls-files '*.go')

.PHONY: generate
generate: ## Write the generated files again (docs/reference).
	go generate ./...
	cd operator && go generate ./...

.PHONY: clean
clean: ## Remove what was built in the checkout; the caches stay.
	rm -rf bin dist coverage.out
