"""The demo models' words and pixels."""

import pytest
import torch
from priorcache.models.words import (
    COLOURS,
    LENGTH,
    SHAPES,
    WIDTH,
    FoldedPixels,
    embeddings,
    encode,
    fold,
    tokens,
    unfold,
)


def test_the_same_word_is_the_same_vector_on_every_machine():
    """Trained weights depend on these numbers."""
    first = torch.tensor([-1.1258398294448853, -1.152360200881958, -0.2505785822868347, -0.4338788092136383])
    torch.testing.assert_close(embeddings()[0, :4], first)
    assert embeddings().shape == (2 + len(COLOURS) + len(SHAPES), WIDTH)


def test_prompts_are_read_without_articles_case_and_commas():
    assert tokens("a Red star, on blue") == tokens("red star on blue")
    assert tokens("half disc") == tokens("half-disc")
    assert tokens("") == [0] * LENGTH


@pytest.mark.parametrize(
    ("prompt", "message"), [("a red cat", "'cat'.*half-disc"), ("red star on blue blue", "4 words.*has 5")]
)
def test_other_prompts_are_explained(prompt, message):
    with pytest.raises(ValueError, match=message):
        tokens(prompt)


def test_context_and_pooled_have_one_row_per_prompt():
    context, pooled = encode(["red star", "", "ring on pink"])
    assert context.shape == (3, LENGTH, WIDTH)
    assert torch.equal(pooled, context.mean(1))
    assert not torch.equal(context[0], context[2])


def test_folding_loses_nothing():
    pictures = torch.rand(2, 3, 12, 8) * 2 - 1
    assert fold(pictures).shape == (2, 16, 6, 4)
    assert torch.equal(unfold(fold(pictures)), pictures)


def test_the_vae_gives_back_what_it_got():
    pixels = torch.rand(2, 8, 12, 3)
    latents = FoldedPixels().encode(pixels)
    assert latents.shape == (2, 16, 4, 6)
    torch.testing.assert_close(FoldedPixels().decode(latents), pixels)
    odd = torch.cat((pixels, pixels[:, :1]), dim=1)  # a detailer's crop
    assert torch.equal(FoldedPixels().encode(odd), latents)


def test_it_speaks_the_latent_format_of_flux(comfy):
    import comfy.latent_formats

    pictures = torch.rand(1, 3, 8, 8) * 2 - 1
    raw = comfy.latent_formats.Flux().process_out(fold(pictures))
    torch.testing.assert_close(FoldedPixels().decode(raw), ((pictures + 1) / 2).movedim(1, -1))
