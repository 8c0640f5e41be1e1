# The one front door. Every target installs what it needs first (tools/bootstrap says what).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PROFILE ?= lab
SCENARIO ?= default
# `make lab-up KERNEL=stock`: hosts that run Debian's own kernel
KERNEL ?= multikernel
PYTEST_ARGS ?=
GATES ?=
VARIANT ?= normal
SHAPE ?= smp4
TESTS ?=

export MKOPS_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mkops
# Of Debian's kernel that is patched, built and tested. The role's default has the one home of this number.
KERNEL_VERSION ?= $(shell sed -n "s/^kernel_version: .*default('\(.*\)', true).*/\1/p" roles/kernel/defaults/main.yml)
export MKOPS_KERNEL_VERSION = $(KERNEL_VERSION)
SERIES ?= $(KERNEL_VERSION)
ALL_SERIES := $(notdir $(patsubst %/,%,$(dir $(wildcard roles/kernel/files/series/*/source.json))))
SERIES_TREE := $(MKOPS_CACHE)/series-test/linux-$(SERIES)
OTHER_SERIES := $(filter-out $(SERIES),$(ALL_SERIES))
export PATH := $(MKOPS_CACHE)/venv/bin:$(MKOPS_CACHE)/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.ansible/collections
export ANSIBLE_HOME := $(CURDIR)/.ansible/home
export MOLECULE_GLOB := $(CURDIR)/molecule/*/molecule.yml
export PYTHONDONTWRITEBYTECODE := 1
# Ansible does not flush what it prints into a pipe or a file, and progress would come late.
export PYTHONUNBUFFERED := 1
# Ansible wants UTF-8, a bare machine may have no other locale than this one.
export LC_ALL := C.UTF-8

built_kernel := -e kernel_profile=lab -e '{"lab_kernel_debs": "{{ hostvars.localhost.kernel_built.debs }}"}'

.PHONY: help
help: ## This list
	@echo "Targets (VARIABLE=default):"
	@sed -n -E 's/^([a-z-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; do \
		printf '  %-12s %s\n' "$$target" "$$text"; done

.PHONY: demo
demo: ## From nothing to kernels of their own on a QEMU host, twice, and one crashed on purpose
	@tools/bootstrap build lab
	tools/demo

.PHONY: test
test: ## Everything that must pass: lint, unit, the kernel's selftests, the Molecule scenarios
	@tools/stages lint unit kernel-test "molecule SCENARIO=default" "molecule SCENARIO=kerf" \
		"molecule SCENARIO=refuse"

.PHONY: test-full
test-full: ## test, matrix, longer scenarios, selftests on all kernels and machines, endurance, fuzzing, the demo (hours)
	@MKOPS_EXAMPLES=5000 tools/stages test "molecule SCENARIO=site" "molecule SCENARIO=layout" "molecule SCENARIO=rollout" \
		"molecule SCENARIO=secureboot" "molecule SCENARIO=survive" "molecule SCENARIO=monitoring" "molecule SCENARIO=live" \
		"molecule SCENARIO=profiles" "molecule SCENARIO=roots" "molecule SCENARIO=guests" \
		"molecule SCENARIO=devices" "molecule SCENARIO=latency" report-test tutorial-test matrix docs-site kernel-builds \
		$(foreach version,$(ALL_SERIES),"kernel-test-full SERIES=$(version)") demo

.PHONY: lint
lint: ## All gates: linters, types, sanity, Galaxy's importer, the series (GATES="mypy ruff" for some)
	@tools/bootstrap build test
	@tools/gates $(GATES)

.PHONY: unit
unit: ## Unit tests, which cover module_utils (PYTEST_ARGS="-k cpuset" for some)
	@tools/bootstrap build test
ifeq ($(PYTEST_ARGS),)
	pytest tests/unit tests/kernel -n 2 --dist worksteal --cov --cov-report term
else
	pytest tests/unit tests/kernel $(PYTEST_ARGS)
endif

.PHONY: report-test
report-test: ## The report in a real browser: light, dark, paper, narrow, by keyboard, by axe-core; pictures in .ansible/report
	@tools/bootstrap report
	@tools/report-test

.PHONY: tutorial-test
tutorial-test: ## Does what docs/tutorial.md says, in a fresh clone, and compares what its commands print
	@tools/bootstrap build lab
	python3 tests/lab/tutorial.py

.PHONY: matrix
matrix: ## Unit tests on other versions of ansible-core and Python, modules on a host with Python 3.9
	@tools/bootstrap build test
	@tools/matrix

.PHONY: docs-site
docs-site: ## The documentation as a site, as antsibull-docs makes it, in .ansible/docs
	@tools/bootstrap
	@tools/docs-site

.PHONY: kernel-test
kernel-test: ## The series' selftests on a host that boots it (VARIANT=normal SHAPE=smp4 TESTS=all SERIES=6.12)
	@tools/bootstrap build lab test
	tools/series sync --kernel $(SERIES) $(SERIES_TREE)
	tools/kernel-lab --tree $(SERIES_TREE) build $(VARIANT)
	tools/kernel-lab --tree $(SERIES_TREE) run --variant $(VARIANT) --shape $(SHAPE) $(TESTS)
	$(if $(TESTS),,tools/kernel-lab --tree $(SERIES_TREE) run --variant $(VARIANT) --shape $(SHAPE) --name live live)

.PHONY: kernel-test-full
kernel-test-full: ## The same with all options and on all machines, endurance, sparse, 30 minutes of fuzzing
	@tools/bootstrap build lab test full
	tools/series sync --kernel $(SERIES) $(SERIES_TREE)
	for variant in normal lockdep kasan; do \
		tools/kernel-lab --tree $(SERIES_TREE) build $$variant; \
		tools/kernel-lab --tree $(SERIES_TREE) run --variant $$variant; \
		tools/kernel-lab --tree $(SERIES_TREE) run --variant $$variant --name live live; \
		tools/kernel-lab --tree $(SERIES_TREE) run --variant $$variant --name crash --append crashkernel=384M \
			"takeover crash"; \
		tools/kernel-lab --tree $(SERIES_TREE) run --variant $$variant --name shared --timeout 3600 \
			--set MK_SCRIBBLE_S=600 scribble; \
	done
	for shape in numa mem8g la57 x2apic bios uefi locked; do \
		tools/kernel-lab --tree $(SERIES_TREE) run --shape $$shape; \
	done
	for shape in numa mem8g la57 x2apic uefi; do \
		tools/kernel-lab --tree $(SERIES_TREE) run --shape $$shape --name live live; \
	done
	tools/kernel-lab --tree $(SERIES_TREE) run --name noise --timeout 14400 --set MK_HOPS=50 --set MK_NOISE=1 live
	for other in $(OTHER_SERIES); do \
		tools/series sync --kernel $$other $(MKOPS_CACHE)/series-test/linux-$$other; \
		tools/kernel-lab --tree $(MKOPS_CACHE)/series-test/linux-$$other build normal; \
		tools/kernel-lab --tree $(SERIES_TREE) run --name live-$$other \
			--next $(MKOPS_CACHE)/series-test/linux-$$other live; \
	done
	tools/kernel-lab --tree $(SERIES_TREE) run --name long --timeout 7200 \
		--set MK_CYCLES=300 --set MK_PANICS=100 endurance
	tools/kernel-lab --tree $(SERIES_TREE) run --name scribble --timeout 3600 --set MK_SCRIBBLE_S=600 \
		"hostile -t random_words"
	tools/series check --kernel $(SERIES)
	tools/kernel-lab --tree $(SERIES_TREE) bench
	tools/kernel-lab --tree $(SERIES_TREE) sparse
	tools/kernel-lab --tree $(SERIES_TREE) each
	tests/fuzz/run 1800 $(SERIES_TREE)

.PHONY: kernel
kernel: ## Build a multikernel kernel (PROFILE=lab KERNEL_VERSION=6.12)
	@tools/bootstrap build
	ansible-playbook playbooks/kernel_build.yml -e kernel_profile=$(PROFILE)

.PHONY: kernel-builds
kernel-builds: kernel ## Real builds: cost, packages, signatures, faults (PARTS="cost packages faults")
	@tools/bootstrap build full
	python3 tests/lab/kernel_builds.py $(PARTS)

.PHONY: lab-up
lab-up: ## Start a QEMU host with that kernel, or with Debian's (KERNEL=multikernel|stock KERNEL_VERSION=6.12)
	@tools/bootstrap $(if $(filter stock,$(KERNEL)),,build) lab
	ansible-playbook $(if $(filter stock,$(KERNEL)),,playbooks/kernel_build.yml) playbooks/lab_up.yml \
		-e '{"lab_devices": true}' $(if $(filter stock,$(KERNEL)),,$(built_kernel))

.PHONY: lab-down
lab-down: ## Stop the QEMU hosts and delete their disks; console logs stay in .lab
	@tools/bootstrap
	ansible-playbook playbooks/lab_down.yml

.PHONY: molecule
molecule: ## Run a Molecule scenario (SCENARIO=default|site|kerf|layout|refuse|rollout|secureboot|survive|live|monitoring|profiles|roots|guests|devices|latency)
	@tools/bootstrap build lab test $(if $(filter latency,$(SCENARIO)),full)
	molecule test --no-command-borders -s $(SCENARIO)

.PHONY: clean
clean: lab-down ## lab-down, and delete what was made in this tree; the cache stays (rm -r ~/.cache/mkops)
	rm -rf .ansible .lab .ruff_cache .pytest_cache mkops-multikernel-*.tar.gz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
