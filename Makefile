# SPDX-License-Identifier: GPL-2.0
#
# What a user types; `make help` lists it. The module itself is described in Kbuild.

release := $(shell uname -r)
# The tree `make kdir` makes, or else what the distribution's headers package installs.
prepared := /usr/src/linux-rdax-$(release)
KDIR ?= $(if $(wildcard $(prepared)/.rdax-release),$(prepared),/lib/modules/$(release)/build)

# Debian's kernels are built with gcc of one version; a kernel built with clang wants LLVM=1.
cc := $(shell sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\) .*/\1/p' $(KDIR)/.config 2>/dev/null)
clang := $(shell grep -s '^CONFIG_CC_IS_CLANG=y' $(KDIR)/.config)
tools := $(if $(clang),LLVM=1,$(if $(cc),CC=$(cc)))

# What `make bench`, `make check` and others hand on, as in `make check ARGS=--help`.
ARGS ?=

.PHONY: all install clean demo check coverage mutants bench profile shell kdir help

all: metadata ## build rdax.ko for the running kernel (or KDIR=tree)
	$(MAKE) -C $(KDIR) M=$(CURDIR) $(tools) modules

install: all ## install rdax.ko for that kernel
	$(MAKE) -C $(KDIR) M=$(CURDIR) $(tools) CONFIG_MODULE_SIG_ALL= modules_install
	depmod $(if $(INSTALL_MOD_PATH),-b $(INSTALL_MOD_PATH)) $$(cat $(KDIR)/include/config/kernel.release)

kdir: ## on Debian 13, as root: the tree with Rust metadata that `all` needs
	scripts/prepare-kernel $(prepared) $(release)

demo: ## see it work, in a virtual machine
	scripts/demo

check: ## run all tests
	scripts/check $(ARGS)

coverage: ## which lines of src/ no test executes
	scripts/coverage $(ARGS)

mutants: ## whether the tests catch deliberate faults
	scripts/mutants $(ARGS)

bench: ## count the instructions of each operation, upstream's and ours
	bench/run $(ARGS)

profile: ## where the instructions of rows go (ARGS='pwrite-4k --fs xfs')
	bench/run --profile $(ARGS)

shell: ## a shell in a virtual machine with adopted pmem devices
	scripts/guest $(ARGS)

clean: ## remove what `make` made here
	@find . -path ./.git -prune -o -type f \( -name '*.o' -o -name '*.ko' -o -name '*.mod' \
		-o -name '*.mod.c' -o -name '.*.cmd' -o -name '*.rmeta' -o -name '*.o.d' \
		-o -name modules.order -o -name Module.symvers -o -name 'bindings_generated.rs' \
		-o -name bindings_options \) -print -exec rm -f {} +

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
		awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

.PHONY: metadata
metadata:
	@test -f $(KDIR)/rust/libkernel.rmeta || { \
	echo "$(KDIR) has no Rust metadata (rust/libkernel.rmeta), which Debian's headers package lacks."; \
	echo "On Debian 13 with the kernel from backports, as root:"; \
	echo "    apt-get install linux-headers-$(release) linux-source-7.3 and what scripts/packages names"; \
	echo "    make kdir && make"; \
	echo "Or build and try it in a virtual machine, without touching this system: scripts/build, make shell"; \
	exit 1; } >&2
