# Two commands matter: `make reproduce` and `make test`. Both set up everything on a machine with Python >= 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
STAMP := $(VENV)/.installed
# The test suite runs one process per core, each with one thread. A third was not faster on two cores: 5% less idle, 15% more work.
RECORDED := METALORA_RESULTS=experiments/cluster/results
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Where this is set (many containers), every process compiles all that it imports again: 25 seconds each.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup reproduce sweep test check format miniworld rival speed lock clean
.PHONY: tradeoff tradeoff-figures study test-browser test-slurm test-ray dashboard
.PHONY: rivals sets table1 table2 table3 table4 fig3 fig4 fig5 fig6 fig7 r1-selection

help:  ## list the targets
	@grep -E '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo '  make table1       one of the paper, ours beside it; also table2, table3, table4, fig3, fig4, fig5, fig6, fig7'

setup: $(STAMP)  ## install everything into .venv from requirements.lock

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(STAMP): requirements.lock pyproject.toml | $(filter .uv/bin/uv,$(UV))
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet requirements.lock
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps -e .
	touch $@

reproduce: $(STAMP)  ## the paper's comparison on the mini world, end to end
	$(BIN)/metalora reproduce experiment=mini/reproduce

# The paper's tables and figures: experiments/NAME. What is there already is served. Another base model and benchmark, in
# outputs of its own; a published method is run where it is told its environment, code and weights (conf/baseline):
#   make table3 WORLD="backbone=flux_dev backbone.path=FLUX trainer=gpu benchmark.root=META_PHD" \
#       GRID="experiment=paper/tradeoff name=reproduce priors.woman=female.safetensors priors.man=male.safetensors" \
#       pulid="baseline.python=PYTHON baseline.settings.code=CHECKOUT"
WORLD ?=
GRID ?= experiment=mini/reproduce rank=1,2,4,8,16
PLACE ?= $(or $(METALORA_OUTPUTS),outputs)$(if $(WORLD),/world)
R1 ?= $(if $(WORLD),experiment=paper/r1_selection ranks=64,128,256 steps=10000,20000,30000,40000,50000,60000 jobs=1)
IN := METALORA_OUTPUTS=$(PLACE)
BASELINES := pulid instantid_sdxl instantid_lightning photomaker_sdxl photomaker_lightning
SETS := protocol.several_photo_people=0 protocol.clip_prompts=null protocol.seeds=[0,1,2]

sweep: $(STAMP)  ## `make reproduce` over ranks 1, 2, 4, 8 and 16 (75 cells), as a Hydra multirun
	$(IN) $(BIN)/metalora reproduce -m $(GRID) $(WORLD)

rivals: $(STAMP)  ## the rivals: our own in the mini world, else the published ones whose code and weights are there
ifeq ($(WORLD),)
	$(IN) $(BIN)/metalora rival name=rivals
	$(IN) $(BIN)/metalora rival name=rivals_aug methods=dreambooth dreambooth.crops=true protocol.single_photo_people=0
else
	@$(foreach one,$(BASELINES),$(IN) $(BIN)/metalora baseline baseline=$(one) name=rivals benchmark=meta_phd $(WORLD) \
		$($(one)) || echo "make rivals: $(one) has not drawn everything" >&2;)
	@for images in $(PLACE)/rivals/baseline/*/manifest.jsonl; do [ ! -f $$images ] || \
		$(IN) $(BIN)/metalora evaluate images=$$(dirname $$images) name=rivals benchmark=meta_phd $(WORLD) || \
		echo "make rivals: $$images is not scored" >&2; done
endif

sets: sweep  ## three seeds of every scene and style, for table 2 and figure 4 (elsewhere the protocol has several)
ifeq ($(WORLD),)
	$(BIN)/python -m experiments.user_study.sets $(PLACE)/reproduce
	$(IN) $(BIN)/metalora rival name=sets methods=ip_adapter $(SETS)
	$(IN) $(BIN)/metalora evaluate name=sets $(SETS) \
		'images=[$(PLACE)/reproduce/sets/lora,$(PLACE)/reproduce/sets/lora_aug,$(PLACE)/reproduce/sets/meta_lora]'
endif

table1 table3 table4 fig3 fig5: sweep rivals
	$(IN) $(BIN)/python -m experiments.$@.plot
fig6: sweep
	$(IN) $(BIN)/python -m experiments.$@.plot
table2 fig4 fig7: sweep rivals sets
	$(IN) $(BIN)/python -m experiments.$@.plot
r1-selection: $(STAMP)  ## appendix K: how wide Meta-Down, how long Stage 1
	$(IN) $(BIN)/python -m experiments.r1_selection.run $(R1) $(WORLD)
	$(IN) $(BIN)/python -m experiments.r1_selection.plot

tradeoff: $(STAMP)  ## the pre-registered study, about fourteen hours: 64 people, three seeds, controls; what results/ holds is not run again
	$(IN) $(BIN)/python -m experiments.tradeoff.run
	$(IN) $(BIN)/python -m experiments.tradeoff.plot

tradeoff-figures: $(STAMP)  ## its figures, tables and answers from the committed scores, in under a minute
	$(BIN)/python -m experiments.tradeoff.plot

test: $(STAMP)  ## all tests
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -q --durations=15

test-browser: $(STAMP)  ## the user study in a headless Chromium (Debian: apt install chromium chromium-driver)
	METALORA_BROWSER=required $(TEST_ENV) $(BIN)/pytest -q tests/reporting/user_study/test_browser.py

test-slurm: $(STAMP)  ## a small grid on a Slurm cluster of this machine (root; Debian: apt install slurmctld slurmd slurm-client munge)
	METALORA_SLURM=required $(RECORDED) $(TEST_ENV) $(BIN)/pytest -q -s tests/cluster/test_slurm.py

# Ray's launcher wants older packages than the lock has: an environment of its own, otherwise with the lock's versions.
test-ray: requirements.lock | $(filter .uv/bin/uv,$(UV))  ## a small grid on a Ray cluster of this machine
	test -x $(VENV)-ray/bin/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)-ray
	sed -nE 's/^([A-Za-z0-9_.-]+==[^ ;]+).*/\1/p' requirements.lock | grep -vE '^(cloudpickle|joblib|python-dateutil)=' \
		> $(VENV)-ray/constraints.txt
	VIRTUAL_ENV=$(VENV)-ray $(UV) pip install --quiet -c $(VENV)-ray/constraints.txt -e '.[ray,joblib]' pytest pytest-xdist
	METALORA_RAY=required $(RECORDED) $(TEST_ENV) $(VENV)-ray/bin/pytest -q -s tests/cluster/test_ray.py

study: $(STAMP)  ## the user study on this machine: best of three after `make reproduce`, of five after `make rivals sets`
	$(BIN)/python -m experiments.user_study.sets $(PLACE)/reproduce
	if ls $(PLACE)/rivals/generate/ip_adapter-*/manifest.json $(PLACE)/rivals/generate/dreambooth-*/manifest.json \
			$(PLACE)/sets/generate/ip_adapter-*/manifest.json >/dev/null 2>&1; then \
		$(IN) $(BIN)/metalora study build name=reproduce 'models=[ip_adapter,dreambooth,lora,lora_aug,meta_lora]' \
			'images=[$(PLACE)/reproduce/generate,$(PLACE)/reproduce/sets,$(PLACE)/rivals/generate,$(PLACE)/sets/generate]'; \
	else \
		$(IN) $(BIN)/metalora study build name=reproduce 'images=[$(PLACE)/reproduce/generate,$(PLACE)/reproduce/sets]'; \
	fi
	$(IN) $(BIN)/metalora study serve name=reproduce

dashboard: $(STAMP)  ## the wandb workspace of the project (needs the extra `dashboard` and a key)
	$(BIN)/metalora dashboard logger=wandb

check: $(STAMP)  ## format, lint, types, floors, tests: the gate every commit passes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

format: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

miniworld: $(STAMP)  ## train the mini world's models again (hours; the shipped weights stay until it is done)
	$(BIN)/python -m metalora.miniworld.build out=outputs/miniworld

rival: $(STAMP)  ## train the mini world's tuning-free rival again (an hour; the shipped one stays until it is done)
	$(BIN)/python -m metalora.miniworld.build.rival out=outputs/rival_build

speed: $(STAMP)  ## the speed benchmarks, written to experiments/speed/results
	$(BIN)/python -m experiments.speed.stage2_step
	$(BIN)/python -m experiments.speed.cohort
	$(BIN)/python -m experiments.speed.steps

lock: | $(filter .uv/bin/uv,$(UV))  ## resolve requirements.lock again
	$(UV) pip compile --quiet --universal --upgrade --generate-hashes --no-emit-index-url --extra dev --python-version 3.11 pyproject.toml -o requirements.lock

clean:  ## remove what was made (outputs/ and caches; not the environment)
	rm -rf outputs/* .pytest_cache .ruff_cache .import_linter_cache
