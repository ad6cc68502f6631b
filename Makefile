# A short front door over plain go. `make help` lists the targets.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
export CGO_ENABLED = 0

.PHONY: cross bench bench-cache bench-smoke help build demo test test-faults test-online parity conformance lint deps clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

build: ## bin/kiln
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/kiln ./cmd/kiln

demo: build ## build examples/hello twice, and show what the second build costs
	@examples/hello/demo.sh bin/kiln

deps: ## what the tests need: Debian packages, a Debian root file system
	test/deps.sh

lint: deps ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'gofmt: the files above are not formatted'; exit 1; }
	$(GO) vet -tags parity,online,faults ./...
	cd test/fuzz && $(GO) vet ./...
	cd test/tools && $(GO) build -o ../../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/staticcheck -checks all -tags parity,online,faults ./...
	cd test/fuzz && ../../bin/staticcheck -checks all ./...

cross: ## the command for other systems, where it is a client, and for linux/arm64
	@for t in linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do \
		echo "cmd/kiln for $$t"; \
		GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) build -o /dev/null ./cmd/kiln && \
		GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) vet ./cmd/kiln/... || exit 1; \
	done

test: deps lint ## all tests but those that download while they run
	test/run.sh

parity: deps ## build test/parity's Dockerfiles with kiln and with BuildKit, and compare
	@test/parity/run.sh

conformance: deps ## the tests with real clients, and BuildKit's and buildx's own against kiln (CASES=REGEXP, SUITE=scripts, client, buildctl, frontend, solver, dockerfile, gateway or buildx for one)
	@test/conformance/run.sh '$(CASES)' $(SUITE)

test-faults: deps ## each fault at each request of a build, for each kind of cache server (some minutes)
	$(GO) test -count=1 -timeout 60m -parallel 8 -tags faults -run EveryFault ./test/cache

test-online: deps build ## builds that download packages; says so where there is no network
	$(GO) test -count=1 -tags online -run Online ./test/...

bench: deps ## kiln beside BuildKit and buildah (WORKLOAD=W4 for one); writes docs/benchmarks.md
	test/bench/run.sh -results out/bench.json -doc docs $(WORKLOAD)

bench-cache: deps ## a runner that starts empty, with a cache in a registry: bytes, requests and seconds beside BuildKit's; writes docs/benchmarks.md
	test/bench/run.sh -results out/bench.json -doc docs -tools kiln,buildkit W16

bench-smoke: deps ## W1 to W6 at a tenth of their size, for ratios in two minutes
	test/bench/run.sh -scale 0.1 -rounds 3 -tools kiln,buildkit W1 W4

clean: ## remove what the targets made
	rm -rf bin out
