"""Ray's metrics of a search's trials: Prometheus scrapes the gauges of cluster/grafana/metrics.json (with `ray_` in
front) from the driver's node."""

from ray.util.metrics import Gauge

from atose_ray.training.record import EpochRecord

TAGS = ("study", "trial", "metric")
GAUGES = {  # name -> what it is
    "atose_trial_objective": "best value of the search's metric so far, on the validation split",
    "atose_trial_epoch": "epochs done, counted from 1 over all stages",
    "atose_trial_train_loss": "mean training loss of the last epoch",
}


class Gauges:
    """The gauges of a search's trials, set where its driver is told of an epoch."""

    def __init__(self, study: str, metric: str) -> None:
        self.study, self.metric = study, metric
        self.gauges = [Gauge(name, description=text, tag_keys=TAGS) for name, text in GAUGES.items()]

    def __call__(self, trial: str, record: EpochRecord) -> None:
        """Show an epoch of a trial."""
        values = record.objective, record.epoch, record.train_loss
        for gauge, value in zip(self.gauges, values, strict=True):
            gauge.set(float(value), tags={"study": self.study, "trial": trial, "metric": self.metric})
