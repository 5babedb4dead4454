"""Park, Kim, Lu & Cho 2019, "Relational knowledge distillation": what one trial does."""

from torch.nn import functional as F

from kdcore import methods
from kdcore.papers.images import IMAGE_METRICS, ImageTrial, piecewise
from kdcore.papers.rkd.loss import angle_wise, distance_wise

VERSION = 1
METRICS = IMAGE_METRICS


class Trial(ImageTrial):
    def make_method(self):
        config = self.config
        if self.teacher is None:
            return methods.plain(self.student)
        terms = methods.soft_targets(config["temperature"], config["soft_weight"], label_weight=1.0)
        terms += [(config[name], term) for name, term in RELATIONS.items() if config[name]]
        return methods.plain(self.student, self.teacher, task=terms)

    def recipe(self, stage):
        rate, steps = piecewise(**self.config["train"], scale=self.config["scale"])
        return {"schedule": rate, "steps": steps, "optimiser": {"momentum": 0.9, "weight_decay": self.config["weight_decay"]}}


prepare = Trial.prepare


def embeddings(batch):
    """Those of the student and of the teacher, normalised to length 1."""
    return F.normalize(batch.own("pooled")), F.normalize(batch.teacher.taps["pooled"])


RELATIONS = {
    "distance_weight": lambda batch: distance_wise(*embeddings(batch)),
    "angle_weight": lambda batch: angle_wise(*embeddings(batch)),
}
