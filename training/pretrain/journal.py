"""What the main process writes down while pre-training goes: log, timing, trackers, online probe, progress bar."""

import logging
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from voxelfm_hf.training.pretrain.files import make_processor
from voxelfm_hf.training.pretrain.online_probe import load_probe_set, probe_scores
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.training.pretrain.run_parts import RunParts
from voxelfm_hf.training.run_folder import LOG_FILE, RunLog, environment, write_json

logger = logging.getLogger(__name__)


class Journal:
    """What the main process writes down while a run goes."""

    def __init__(self, recipe: PretrainRecipe, accelerator: Accelerator, parts: RunParts):
        folder = Path(recipe.output_dir)
        self.recipe, self.accelerator, self.parts = recipe, accelerator, parts
        self.log, self.timing = RunLog(folder / LOG_FILE), RunLog(folder / "timing.jsonl")
        for log in (self.log, self.timing):
            log.cut(parts.first_step or -1)
        facts = environment(accelerator.num_processes, accelerator.device, recipe.run.mixed_precision)
        write_json(folder / "environment.json", facts)
        if recipe.probe.labels:
            processor = make_processor(recipe, max_patches=recipe.probe.max_patches)
            self.probe_set = load_probe_set(recipe.probe.labels, processor)
            if parts.first_step == 0:
                self.log.add({"step": 0, **self._probe()})

    def write(self, entry: dict, speed: dict, *, with_probe: bool) -> None:
        """Log the values of a step."""
        entry |= {"bad_steps": self.parts.tally.bad_steps}
        if with_probe:
            entry |= self._probe()
        self.log.add(entry)
        self.timing.add({"step": entry["step"], **speed})
        self.accelerator.log({**entry, **speed}, step=entry["step"])

    def _probe(self) -> dict[str, float]:
        return probe_scores(
            self.parts.teacher.backbone,
            self.probe_set,
            device=self.accelerator.device,
            neighbours=self.recipe.probe.neighbours,
            seed=self.recipe.seed,
        )


def show(progress: tqdm, entry: dict, speed: dict) -> None:
    """Put the newest values on the bar, or into the log where there is no bar."""
    words = {
        "loss": f"{entry['total']:.3f}",
        "volumes/s": f"{speed['volumes_per_second']:.2f}",
        "data wait": f"{100 * speed['data_wait_share']:.0f}%",
    }
    if progress.disable:
        logger.info("step %d: %s", entry["step"], ", ".join(f"{name} {value}" for name, value in words.items()))
    else:
        progress.set_postfix(words)
