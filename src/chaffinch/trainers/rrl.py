"""RRL: pictures on a sphere where neighbours clean the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.neighbors import nearest
from ..card import MethodCard
from ..detectors.rrl import FEWEST, listen, settle
from ..losses.base import check_temperature, check_weights, unit
from .base import Batch, Division, Net, Site, Step, Trainer, log_probs, numpy_probs
from .mixing import draw_mix, mixed_ce, weighted_ce

EMBEDDING = 50
"""Length d of the embedding."""

CALM = 0.2
"""Share of the recipe's learning rate: its 0.1 becomes the paper's 0.02."""


class RobustRepresentationLearning(Trainer):
    r"""RRL: labels are cleaned by the neighbours in an embedding that is learnt beside the classifier.

    Three linear layers read the features h: the classifier; an encoder, :math:`u = W_e h`, :math:`v = u / \|u\|`; and
    a decoder, which with :math:`L_{rec} = \mathrm{mean}\,(\mathrm{ReLU}(W_d u) - h)^2` keeps in u what h says. With
    v of a weak and :math:`\tilde v` of a strong view, each sample finds itself among the batch, and mixtures (one
    lambda from Beta(a, a), which may be below a half) find the prototypes :math:`c_k` of both their classes:

    .. math:: L = L_{ce} + w_{inst} L_{inst} + w_{pc} L_{pc} + w_{rec} (L_{rec} + \tilde L_{rec})

    .. math:: L_{inst} = -\frac1B \sum_i \log \frac{e^{v_i \tilde v_i / \tau}}{e^{v_i \tilde v_i / \tau}
        + \sum_{j \ne i} (e^{v_i v_j / \tau} + e^{v_i \tilde v_j / \tau})}, \qquad
        L_{pc} = \lambda\, CE(v^m c / \tau, y) + (1-\lambda)\, CE(v^m c / \tau, y_{o})

    Prototypes are normalised class means of the plain pictures after the epoch before; a class without samples keeps
    the one it had. Soft labels s start from p. Before each epoch from ``clean_from`` on, all at once,

    .. math:: s_i \leftarrow \tfrac12 \Big(p_i + \sum_{j \in N_k(i)} w_{ij} s_j\Big), \qquad
        w_{ij} \propto e^{v_i v_j / \tau}

    Where then :math:`s_{i,y_i} > \eta_{low}`, the given label is kept and s becomes one-hot; all others are flagged.
    Samples with :math:`\max s_i > \eta_{high}` are trained on with the label :math:`\arg\max s_i`; the rest, among
    them foreign pictures, whose s stays flat, teach only through the other two terms.

    Differs from the released code: k is at most half of a class (as in the detector `rrl`); prototypes of classes
    that lost all samples do not become NaN; no permutation of the strong batch, which matters to several devices
    only. The terms weigh nine times cross-entropy, so the learning rate is a fifth of the recipe's: by default 0.02, as
    in the paper; at 0.1 tiny trainings lost a class. The paper has 200 epochs on CIFAR and warms up for 100 steps;
    defaults here are for 14 to 60 epochs of 12,000 samples.

    Source: Li, Xiong, Hoi, Learning from Noisy Data with Robust Representation Learning, ICCV 2021.

    Args:
        warmup: epochs of cross-entropy and reconstruction alone, at least 1: without them prototypes mean nothing.
        clean_from: first epoch (from 0) with cleaned labels, at least 1 (the paper: 5 to 15 of 200). Too early,
            classes that are not learnt yet lose their samples.
        k: neighbours that each sample listens to.
        tau: temperature of all cosines.
        eta_low: a given label is kept above this; the paper sets it for each dataset, 0.02 to 0.4, smaller with more
            classes. 0 takes 2/C, at most 0.4.
        eta_high: what is surer than this is trained on.
        instance: weight of the instance term.
        prototype: weight of the prototype term (the paper: 5 on CIFAR, 2 on WebVision, 1 on Clothing1M).
        ramp: epochs in which that weight goes from 1 to its value.
        reconstruction: weight of the reconstruction of both views.
        alpha: of mixup (the paper: 8 on CIFAR, near-equal mixtures; 0.5 on web data, mostly one picture).
        both: mix strong views, too; a third of the cost.
    """

    card = MethodCard(
        slug="rrl",
        name="Robust representation learning (RRL)",
        paper="Learning from Noisy Data with Robust Representation Learning (Li, Xiong, Hoi; ICCV 2021)",
        year=2021,
        formula=r"L = L_{ce} + w_{inst} L_{inst} + w_{pc} L_{pc} + w_{rec} L_{rec},\qquad"
        r" s_i \leftarrow \tfrac12\Big(p_i + \sum_{j\in N_k(i)} w_{ij} s_j\Big)",
        summary="Learns, beside the classifier, an embedding in which pictures of a class gather around a prototype. "
        "The neighbours there clean the labels: what they support is kept, what they surely contradict is replaced, "
        "and what stays open is left out of the classification.",
        fails_when="Labels are cleaned before the embedding means anything, or wrong labels follow the look of the "
        "pictures, so that neighbours err together. Each step costs three to four times one of plain mixup.",
    )

    soft: Tensor
    prototypes: Tensor

    def __init__(
        self,
        warmup: int = 1,
        clean_from: int = 5,
        k: int = 200,
        tau: float = 0.3,
        eta_low: float = 0.0,
        eta_high: float = 0.9,
        instance: float = 1.0,
        prototype: float = 5.0,
        ramp: int = 0,
        reconstruction: float = 1.0,
        alpha: float = 8.0,
        both: bool = True,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("warmup", warmup, 1),
            ("clean_from", clean_from, 1),
            ("k", k, 1),
            ("ramp", ramp, 0),
        ):
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        for name, share in (("eta_low", eta_low), ("eta_high", eta_high)):
            if not 0 <= share < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {share}")
        check_weights(instance=instance, prototype=prototype, reconstruction=reconstruction, alpha=alpha)
        self.warmup, self.clean_from, self.k, self.tau = warmup, clean_from, k, check_temperature(tau, "tau")
        self.eta_low, self.eta_high, self.ramp = eta_low, eta_high, ramp
        self.instance, self.prototype, self.reconstruction = instance, prototype, reconstruction
        self.alpha, self.both = alpha, both

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Encoder and decoder of the embedding."""
        return {"encode": nn.Linear(dim, EMBEDDING), "decode": nn.Linear(EMBEDDING, dim)}

    def rate(self, epoch: int) -> float:
        """A cosine from a fifth."""
        return CALM * super().rate(epoch)

    def setup(self, site: Site) -> None:
        """Start soft labels (N, C) at the given ones and prototypes (C, d) at nothing."""
        super().setup(site)
        self.register_buffer("soft", F.one_hot(site.labels, site.classes).float())
        self.register_buffer("prototypes", torch.zeros(site.classes, EMBEDDING, device=site.labels.device))

    def step(self, k: int, batch: Batch) -> Step:
        """Cross-entropy and reconstruction in the warm-up, then all terms."""
        net, x, strong = self.nets[k], batch.weak(), batch.strong()
        y, used = (values[batch.rows] for values in self.cleaned(self.flags, self.weights))
        h, h_strong = net.body.features(x), net.body.features(strong)
        u, u_strong = net.heads["encode"](h), net.heads["encode"](h_strong)
        logits = net.classify(h)
        ce = weighted_ce(logits, F.one_hot(y, self.classes).float(), used.float())
        rebuilt = rebuilding(net, u, h) + rebuilding(net, u_strong, h_strong)
        total, parts = ce + self.reconstruction * rebuilt, {"classification": ce, "reconstruction": rebuilt}
        if batch.epoch >= self.warmup:
            inst = instance_loss(unit(u), unit(u_strong), self.tau)
            total, parts = total + self.instance * inst, parts | {"instance": inst}
            if int(used.sum()) > 1:
                views = [x[used], strong[used]] if self.both else [x[used]]
                inputs, targets = torch.cat(views), F.one_hot(y[used].repeat(len(views)), self.classes).float()
                mix = draw_mix(len(inputs), self.alpha, batch.rng, larger=False)
                near = self.embed(net, net.body.features(mix(inputs))) @ self.prototypes.T / self.tau
                pc = mixed_ce(near, targets, torch.ones(len(inputs), device=x.device), mix)
                total, parts = total + self.pull(batch.epoch) * pc, parts | {"prototype": pc}
        return Step(total, logits, {name: float(part.detach()) for name, part in parts.items()})

    def pull(self, epoch: int) -> float:
        """Weight of the prototype term in an epoch: ramped from 1."""
        return self.prototype if epoch >= self.ramp else 1 + (self.prototype - 1) * epoch / self.ramp

    def cleaned(self, flags: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The label (N,) that each sample is trained on with, and whether (N,) it is."""
        return torch.where(flags, self.soft.argmax(1), self.labels), ~flags | (weights > 0)

    def embed(self, net: Net, h: Tensor) -> Tensor:
        """Unit embeddings (B, d) of features."""
        return unit(net.heads["encode"](h))

    def look(self, k: int, x: Tensor) -> dict[str, Tensor]:
        """Logits and the embedding."""
        net = self.nets[k]
        h = net.body.features(x)
        return {"logits": net.classify(h), "embedding": self.embed(net, h)}

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Clean the labels for the next epoch, then find its prototypes."""
        (look,) = looks
        v = look["embedding"]
        found = self.clean(look["logits"], v, epoch) if epoch + 1 >= self.clean_from else super().divide(looks, epoch)
        if not bool(self.prototypes.any()):
            self.prototypes.copy_(class_means(v, self.labels, self.prototypes))
        y, used = self.cleaned(found.flags, self.weights if found.weights is None else found.weights)
        self.prototypes.copy_(class_means(v[used], y[used], self.prototypes))
        return found

    def clean(self, logits: Tensor, v: Tensor, epoch: int) -> Division:
        """Refresh the soft labels and say which given ones they keep."""
        p, y = numpy_probs(logits), self.labels.cpu().numpy()
        eta_low = self.eta_low or min(0.4, 2 / self.classes)
        soft = p.copy() if epoch + 1 == self.clean_from else self.soft.double().cpu().numpy()
        if epoch + 1 == self.clean_from:
            settle(soft, y, eta_low)
        soft, own, kept = refreshed(soft, p, y, v.cpu().numpy(), self.k, self.tau, eta_low)
        clean = soft.max(axis=1) > self.eta_high
        self.soft.copy_(torch.as_tensor(soft))
        scores = torch.as_tensor(1 - own, device=v.device).float()
        if not clean.any():
            note = "rrl is sure of no label, so nothing is left out"
            return Division(torch.zeros_like(self.flags), scores, "rrl", targets=self.soft.clone(), note=note)
        flags, weights = (torch.as_tensor(values, device=v.device) for values in (~kept, clean))
        lost = len(np.setdiff1d(y, soft[clean].argmax(axis=1)))
        note = f"no sample of {lost} class(es) is left to train on" if lost else ""
        return Division(flags, scores, "rrl", weights.float(), targets=self.soft.clone(), note=note)


def refreshed(
    soft: NDArray[np.float64], p: NDArray[np.float64], y: NDArray[np.int64], v: Any, k: int, tau: float, eta_low: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """One cleaning.

    Args:
        soft: (N, C) soft labels before.
        p: (N, C) what the classifier says.
        y: (N,) given labels.
        v: (N, d) embeddings.
        k: neighbours; at most half of the given class, but at least `FEWEST`, are asked.
        tau: temperature.
        eta_low: a given label is kept above this.

    Returns:
        Soft labels after, one-hot where the given label is kept; what they gave that label before they became so, (N,);
        where it is kept, (N,).
    """
    asked = np.minimum(k, np.maximum(FEWEST, np.bincount(y) // 2))[y]
    near = nearest(v, int(asked.max()))
    soft = (p + listen(soft, near, np.minimum(asked, near.k), tau)) / 2
    own = soft[np.arange(len(y)), y]
    return soft, own, settle(soft, y, eta_low)


def rebuilding(net: Net, u: Tensor, h: Tensor) -> Tensor:
    """How badly the decoder rebuilds features h (B, F) from u (B, d); h gets a gradient, too."""
    return F.mse_loss(F.relu(net.heads["decode"](u)).float(), h.float())


def instance_logits(v: Tensor, strong: Tensor, tau: float) -> Tensor:
    """(B, 2B - 1): cosine over tau of each weak view with its strong one, then with others' weak and strong ones."""
    b = len(v)
    others = ~torch.eye(b, dtype=torch.bool, device=v.device)
    own, cross = v @ v.T, v @ strong.T
    return torch.cat([cross.diagonal()[:, None], own[others].view(b, -1), cross[others].view(b, -1)], 1) / tau


def instance_loss(v: Tensor, strong: Tensor, tau: float) -> Tensor:
    """Each weak view (B, d) finds its strong one among all other views of the batch; unit rows."""
    return -log_probs(instance_logits(v, strong, tau))[:, 0].mean()


def class_means(v: Tensor, y: Tensor, before: Tensor) -> Tensor:
    """Normalised mean (C, d) of the embeddings (M, d) of each class; what was before where a class has none."""
    sums = torch.zeros_like(before).index_add_(0, y, v.to(before.dtype))
    counts = torch.bincount(y, minlength=len(before))
    return torch.where(counts[:, None] > 0, unit(sums), before)
