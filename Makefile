# make demo: from nothing to a scored forecast, in .venv; make test: everything that CI runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
SAMPLE := data/sample_region.nc
RUN := checkpoints/sample_region

.PHONY: demo test install clean
.DELETE_ON_ERROR:

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, found ' + sys.version.split()[0])"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

$(SAMPLE): | $(INSTALLED)
	$(BIN)/convlstm-wx sample --output $@

demo: $(INSTALLED) $(SAMPLE)
	$(BIN)/python train_convlstm.py --config scripts/demo.toml --overwrite
	$(BIN)/convlstm-wx forecast --checkpoint $(RUN)/best.pt --data $(SAMPLE) --output forecast.nc
	$(BIN)/convlstm-wx evaluate --checkpoint $(RUN)/best.pt --data $(SAMPLE) --output evaluation/
	@echo
	@echo "Look at:"
	@echo "  evaluation/report.html     the scores and figures on one page"
	@echo "  evaluation/figures/        the figures"
	@echo "  evaluation/scores.csv      every score"
	@echo "  forecast.nc                the newest forecast (any NetCDF viewer)"
	@echo "  $(RUN)/history.csv   the losses of each epoch"

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
