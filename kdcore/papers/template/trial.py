"""KEY: what one trial does."""

from kdcore import methods
from kdcore.papers.images import IMAGE_METRICS, ImageTrial, piecewise

VERSION = 1  # part of every trial's id: raise it when results change although no parameter does
METRICS = IMAGE_METRICS


class Trial(ImageTrial):
    def make_method(self):
        config = self.config
        if self.teacher is None:
            return methods.plain(self.student)
        return methods.kd(self.student, self.teacher, temperature=config["temperature"], soft_weight=config["soft_weight"])

    def recipe(self, stage):
        config = self.config
        rate, steps = piecewise(**config["train"], scale=config["scale"])
        return {"schedule": rate, "steps": steps, "optimiser": {"momentum": config["momentum"], "weight_decay": config["weight_decay"]}}


prepare = Trial.prepare
