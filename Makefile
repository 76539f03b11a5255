# `make` lists the targets. Each makes the virtual environment it needs; nothing but Python 3.11+ and make must be there.

PYTHON ?= python3
SECONDS_OF_VIDEO ?= 30
PROMPT ?=

.PHONY: help demo test test-slow test-lowest test-gpu test-openvino-gpu lint bench train clean

help:
	@grep -E '^[a-z-]+:.*#' Makefile | sed -E 's/:.*# /\t/' | expand -t 10

demo: .venv-run/ready  # write a 30-second video with the shipped bundle; installs no torch
	@mkdir -p out
	.venv-run/bin/everframe generate --seconds $(SECONDS_OF_VIDEO) $(if $(PROMPT),--prompt "$(PROMPT)") --force -o out/demo.mp4
	@echo "The video is in $(CURDIR)/out/demo.mp4"

test: .venv/ready  # run the tests (all but the slow whole-product ones)
	@command -v chromium >/dev/null || echo "skipped: the pages in a real browser (apt install chromium)"
	@ls /dev/nvidia[0-9]* >/dev/null 2>&1 || echo "skipped: tests/gpu (no NVIDIA GPU here)"
	.venv/bin/python -m pytest -n 4 --dist loadfile --durations 60

test-slow: .venv/ready  # every command of every document, and other whole-product tests
	.venv/bin/python -m pytest -m slow -n 4 --dist load --durations 15 $(ARGS)

test-lowest:  # every dependency at its lowest declared version: streams the demo and serves it
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct '.[serve]'
	.venv-lowest/bin/python tests/lowest.py

ifdef WHEELS
test-gpu:  # the tests that need an NVIDIA GPU; WHEELS=FOLDER installs from there alone: no network, no torch
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check --no-index --find-links $(WHEELS) . pytest cuda-python ml-dtypes onnx $(or $(TENSORRT),tensorrt-rtx)
	cd tests/gpu && ../../.venv-gpu/bin/python -m pytest --rootdir . --confcutdir . -m '' -o addopts= -rs .
else
test-gpu: .venv/ready
	.venv/bin/python -m pytest tests/gpu -m '' -rs
endif

test-openvino-gpu: .venv/ready  # parity and proof on an Intel GPU (or OPENVINO_DEVICE=npu)
	EVERFRAME_OPENVINO_DEVICE=$(or $(OPENVINO_DEVICE),gpu) .venv/bin/python -m pytest tests/engines/test_openvino.py tests/runtime/test_proof.py -k "openvino or same or share or kept" -rs

lint: .venv/ready  # ruff (lint, format) and pyright
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@mkdir -p build/types/everframe  # the namespace package as pyright can see it
	@for room in export calibration engines runtime; do ln -sfn ../../../$$room build/types/everframe/$$room; done
	.venv/bin/pyright --pythonpath .venv/bin/python

bench: .venv/ready  # real-time factor and stage medians, beside eager PyTorch
	.venv/bin/python benchmarks/stream.py

train: .venv/train  # train the demo, from where it stopped, for MINUTES or until it is stopped
	.venv/bin/python training/train.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DEVICE),--device $(DEVICE))

clean:  # remove environments and outputs
	rm -rf .venv .venv-run .venv-lowest .venv-gpu out build *.egg-info

.venv-run/ready: pyproject.toml $(shell find runtime engines export calibration -type f -not -name "*.pyc" -not -path "*.everframe/engines/*" 2>/dev/null)
	$(PYTHON) -m venv .venv-run
	.venv-run/bin/pip install --quiet --disable-pip-version-check .
	@touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.venv/train: .venv/ready
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	@touch $@
