"""A model folder behind the common API of HEAR 2021, so that its benchmark can ask it: `hear-validator
atose_ray.apps.hear -m FOLDER`.

Source: Turian et al., "HEAR: Holistic Evaluation of Audio Representations", 2022 (arXiv:2203.03022), and the common
API on neuralaudio.ai. Audio comes as [sounds, samples] in [-1, 1] at `model.sample_rate`, which is one of four; a model
of another rate says the next one of them, and resamples. Time stamps are the middles of hops of 50 ms, in milliseconds.
"""

import numpy as np
import torch
from torch import nn

from atose_ray.apps.embeddings import Embedding, embedded, embedding_of
from atose_ray.apps.sounds import samples_of
from atose_ray.training import checkpoint

RATES_HZ = (16000, 22050, 44100, 48000)  # that the API allows
HOP_S = 0.05  # the longest that it advises


class HearModel(nn.Module):
    """What the API wants of a model: its rate and sizes, and that it moves to a device."""

    def __init__(self, trained: checkpoint.Model) -> None:
        super().__init__()
        self.trained, self.method = trained, trained.method
        own_hz = trained.spec.audio.sample_rate_hz
        self.sample_rate = next((rate for rate in RATES_HZ if rate >= own_hz), RATES_HZ[-1])
        with torch.no_grad():
            size = embedded(trained, torch.zeros(1, *trained.spec.input.shape)).shape[1]
        self.scene_embedding_size = self.timestamp_embedding_size = int(size)

    def embed(self, audio: torch.Tensor, hop_s: float | None) -> list[Embedding]:
        """[B, T] -> an embedding of each. Raises AudioError for audio that is not finite."""
        rows_BT = audio.detach().float().cpu().numpy()
        sounds = (samples_of(row_T, self.sample_rate) for row_T in rows_BT)
        return [embedding_of(self.trained, sound, hop_s, "a sound") for sound in sounds]


def load_model(model_file_path: str = "") -> HearModel:
    """Open a model folder by path or URI. Raises ValueError without one: there is no default model."""
    if not model_file_path:
        raise ValueError("atose_ray.apps.hear has no model of its own; name a model folder, `best` of a study")
    return HearModel(checkpoint.load_model(model_file_path))


def get_scene_embeddings(audio: torch.Tensor, model: HearModel) -> torch.Tensor:
    """[B, T] -> [B, E] float32, on the device of the audio."""
    return torch.from_numpy(np.stack([one.scene_E for one in model.embed(audio, None)])).to(audio.device)


def get_timestamp_embeddings(audio: torch.Tensor, model: HearModel) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] -> [B, S, E] and [B, S] float32: embeddings, and the milliseconds that they stand for."""
    found = model.embed(audio, HOP_S)
    embed_BSE = torch.from_numpy(np.stack([one.vectors_SE for one in found]))
    step_s = found[0].end_s_S[0] - found[0].start_s_S[0] if len(found[0].start_s_S) > 1 else HOP_S
    middles_BS = torch.from_numpy(1000 * np.stack([one.start_s_S + step_s / 2 for one in found]))
    return embed_BSE.to(audio.device), middles_BS.float().to(audio.device)
