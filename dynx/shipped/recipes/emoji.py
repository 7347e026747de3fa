"""Train the shipped `emoji` from nothing: a small latent diffusion model that draws what a caption names.

    apt-get install fonts-noto-color-emoji
    pip install diffusers Pillow emoji
    python -m dynx.shipped.recipes.emoji --work build/emoji

Stages run in order and each resumes where it stopped: *pictures* (the font's glyphs at 64 × 64 on white, captions from
their Unicode names, a byte-level BPE vocabulary learned from those), *vae* (a convolutional autoencoder, 16 × 16 × 4
latents), *latents* (of every picture, and of pairs drawn side by side), *denoiser* (a UNet and the text encoder
together, v-prediction, arXiv 2202.00512), *decoder* (the autoencoder's second half goes on learning), *export* (a
`StableDiffusionPipeline` folder in 16 bit, a model card with the figures measured on what was written). Everything a run
needs lives in `--work`: pictures, checkpoints, log, samples.

It is a look-up as much as a generator: a few hundred pictures, seen a thousand times each. What is left to the sampler
is real: captions that fit several pictures, and captions of two things.

A run ends at `--steps`, or earlier at `--finish-by`; either way the rate first falls to zero. Both may be changed from
one run to the next, and a run that is sent SIGTERM writes a checkpoint before it ends.

The recipe knows nothing of dynx's engine.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import math
import re
import signal
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dynx.shipped.recipes.story import pick_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109
"""The only size a bitmap font has."""

SIDE = 64
"""Pixels of a picture's side; a latent has a quarter of them."""

GUIDANCE = 2.5
"""For the samples while training and the card's figures: the captions leave little to guess, so little is enough."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"

# Chosen for being told apart at 64 pixels and known by name: no flags, skin tones, clock faces, signs with writing, and
# one of a person, a gesture or a vehicle that comes in several almost equal drawings.
EASY = """
alien anchor ant avocado balloon banana basketball bat bear bed beer_mug bell bicycle bomb books bread broccoli bug
butterfly cactus camera candle candy carrot castle cat_face cherries chicken cookie cow_face crab crown dog_face
dolphin door doughnut dragon_face duck egg elephant envelope eyes fire fish four_leaf_clover fox french_fries frog
gem_stone ghost glasses grapes green_apple guitar hamburger hammer hot_dog house jack-o-lantern key lemon light_bulb
lion mouse_face mushroom octopus owl panda peach pear pencil penguin pig_face pineapple pizza rabbit_face rainbow
red_apple red_heart robot rocket rose sailboat scissors shark skull snail snake snowflake snowman_without_snow
soccer_ball spider star strawberry sun sunflower tent tiger_face tomato evergreen_tree trophy turtle umbrella
unicorn watermelon whale crescent_moon automobile bus airplane
"""
REST = """
grinning_face face_with_tears_of_joy smiling_face_with_smiling_eyes smiling_face_with_halo winking_face
smiling_face_with_heart-eyes star-struck face_blowing_a_kiss face_savoring_food winking_face_with_tongue zany_face
money-mouth_face thinking_face zipper-mouth_face neutral_face face_with_rolling_eyes grimacing_face sleeping_face
face_with_medical_mask nauseated_face hot_face cold_face exploding_head cowboy_hat_face partying_face
smiling_face_with_sunglasses nerd_face slightly_smiling_face slightly_frowning_face upside-down_face flushed_face
crying_face loudly_crying_face face_screaming_in_fear angry_face enraged_face smiling_face_with_horns pile_of_poo
clown_face ogre alien_monster see-no-evil_monkey kiss_mark love_letter heart_with_arrow broken_heart two_hearts
orange_heart yellow_heart green_heart blue_heart purple_heart black_heart hundred_points collision sweat_droplets
speech_balloon ZZZ waving_hand OK_hand victory_hand crossed_fingers backhand_index_pointing_left
backhand_index_pointing_right backhand_index_pointing_up thumbs_up thumbs_down raised_fist clapping_hands handshake
folded_hands flexed_biceps foot ear nose brain tooth bone eye tongue mouth baby boy girl man woman old_man old_woman
police_officer ninja construction_worker princess Santa_Claus superhero mage fairy merperson zombie person_running
woman_dancing person_surfing footprints monkey_face monkey gorilla poodle wolf raccoon leopard horse_face zebra deer
ram ewe goat camel llama giraffe mammoth rhinoceros hippopotamus hamster chipmunk hedgehog koala sloth kangaroo
paw_prints turkey rooster hatching_chick baby_chick bird dove eagle swan feather flamingo peacock parrot crocodile
lizard sauropod T-Rex spouting_whale seal tropical_fish blowfish spiral_shell honeybee lady_beetle spider_web scorpion
mosquito worm bouquet cherry_blossom wilted_flower hibiscus tulip seedling potted_plant deciduous_tree palm_tree
maple_leaf fallen_leaf melon tangerine mango kiwi_fruit blueberries coconut eggplant potato ear_of_corn hot_pepper
cucumber garlic onion peanuts chestnut croissant baguette_bread pretzel pancakes waffle cheese_wedge meat_on_bone
poultry_leg bacon sandwich taco burrito cooking pot_of_food green_salad popcorn butter rice_ball steaming_bowl spaghetti
sushi fried_shrimp dumpling lobster shrimp squid soft_ice_cream ice_cream birthday_cake shortcake cupcake pie
chocolate_bar lollipop honey_pot baby_bottle glass_of_milk hot_beverage teapot bottle_with_popping_cork wine_glass
cocktail_glass tropical_drink clinking_beer_mugs cup_with_straw fork_and_knife spoon kitchen_knife
globe_showing_Europe-Africa compass snow-capped_mountain volcano desert_island brick rock wood hospital school factory
church fountain night_with_stars sunrise bridge_at_night ferris_wheel circus_tent locomotive bullet_train ambulance
fire_engine police_car taxi racing_car delivery_truck tractor motorcycle motor_scooter skateboard fuel_pump
police_car_light horizontal_traffic_light stop_sign construction canoe ship parachute helicopter satellite
flying_saucer luggage hourglass_done watch alarm_clock full_moon sun_with_face ringed_planet glowing_star
shooting_star cloud sun_behind_cloud cloud_with_rain tornado high_voltage comet droplet water_wave Christmas_tree
fireworks firecracker sparkles party_popper ribbon wrapped_gift ticket military_medal 1st_place_medal baseball
american_football tennis bowling ice_hockey ping_pong boxing_glove flag_in_hole ice_skate fishing_pole diving_mask skis
bullseye yo-yo kite pool_8_ball crystal_ball magic_wand video_game joystick slot_machine game_die puzzle_piece
teddy_bear spade_suit diamond_suit club_suit artist_palette performing_arts yarn sunglasses necktie t-shirt jeans scarf
gloves coat socks dress kimono bikini purse handbag backpack running_shoe hiking_boot high-heeled_shoe woman’s_hat
top_hat graduation_cap billed_cap lipstick ring megaphone no_entry musical_note headphone radio saxophone accordion
trumpet violin banjo drum mobile_phone telephone battery electric_plug laptop desktop_computer printer floppy_disk
optical_disk movie_camera clapper_board television magnifying_glass_tilted_left flashlight red_paper_lantern open_book
scroll newspaper money_bag coin dollar_banknote credit_card chart_increasing package postbox crayon paintbrush memo
briefcase file_folder calendar pushpin paperclip wastebasket locked axe dagger crossed_swords water_pistol boomerang
bow_and_arrow shield carpentry_saw wrench screwdriver gear balance_scale chains toolbox magnet ladder test_tube dna
microscope telescope syringe pill adhesive_bandage window couch_and_lamp chair toilet bathtub razor safety_pin broom
basket roll_of_paper bucket soap toothbrush fire_extinguisher shopping_cart cigarette coffin headstone moai warning
radioactive right_arrow left_arrow yin_yang peace_symbol plus red_exclamation_mark red_question_mark recycling_symbol
check_mark_button cross_mark red_circle green_circle blue_circle red_square blue_square chequered_flag triangular_flag
"""

MORE_WORDS = {
    "airplane": ["plane"],
    "automobile": ["car"],
    "backhand_index_pointing_left": ["hand pointing left"],
    "backhand_index_pointing_right": ["hand pointing right"],
    "backhand_index_pointing_up": ["hand pointing up"],
    "baby_chick": ["chick"],
    "bicycle": ["bike"],
    "blowfish": ["puffer fish"],
    "crescent_moon": ["moon"],
    "cross_mark": ["red cross"],
    "evergreen_tree": ["tree", "fir tree"],
    "french_fries": ["fries"],
    "gem_stone": ["diamond"],
    "grinning_face": ["smile", "happy face", "smiling face"],
    "hamburger": ["burger"],
    "honeybee": ["bee"],
    "hot_beverage": ["cup of coffee", "tea"],
    "jack-o-lantern": ["halloween pumpkin", "pumpkin"],
    "mobile_phone": ["phone"],
    "pile_of_poo": ["poop"],
    "red_heart": ["heart"],
    "slightly_frowning_face": ["sad face"],
    "snowman_without_snow": ["snowman"],
    "snow-capped_mountain": ["snowy mountain"],
    "wrapped_gift": ["present"],
}
"""What people say and neither the Unicode name nor its aliases do."""

UNSPOKEN = {"hankey", "shit", "harambe", "hocho", "izakaya lantern", "moyai", "sob", "mega", "mag", "art", "metal"}
"""Aliases of the package that nobody should find in a caption, or nobody would."""

SINGLE = [
    "{a}", "{a}", "{a}", "{one}", "{one}", "the {a}", "{a} emoji", "{one} emoji", "an emoji of {one}",
    "a picture of {one}", "a drawing of {one}", "{turned}",
]  # fmt: skip
PAIR = ["{a} and {b}", "{one} and {other}", "{one} and {other}", "{one} next to {other}", "{a} with {b}", "{a}, {b}"]


@dataclass(frozen=True)
class Plan:
    """One network's training run: warm-up, flat, then a linear fall to zero over the last `decay` of it."""

    batch: int = 16
    steps: int = 6_000
    lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.5
    weight_decay: float = 0.01
    average: float = 0.998  # of the weights that are kept, per step
    every: int = 250  # steps between two checkpoints and log lines

    def rate(self, step: int, left: float | None = None) -> float:
        """Learning rate of `step`; with `left`, the share of the fall that the clock still allows, no more than that."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.lr * min(rise, fall, 1.0 if left is None else left)


@dataclass(frozen=True)
class Shape:
    """Widths of the three networks."""

    vae: tuple[int, ...] = (24, 48, 64)
    unet: tuple[int, ...] = (64, 96, 128)
    time: int = 128  # of the embedding of time and caption that every block of the UNet sees
    text: int = 128
    text_layers: int = 2
    vocab: int = 2_200
    window: int = 32  # tokens of a caption, start and end included
    heads: int = 4
    groups: int = 8
    drop: float = 0.1  # share of captions left out, for classifier-free guidance
    pairs: float = 0.1  # share of pictures of two things
    snr: float = 20.0  # signal-to-noise ratio above which the noise no longer matters less


@dataclass(frozen=True)
class Deadline:
    """The clock time by which a run has to end, and for how many seconds before it the rate falls."""

    end: float
    fall: float

    def left(self, now: float) -> float:
        """Share of the fall still to come at `now`: 1 before it begins, 0 at the end."""
        return min(1.0, max(0.0, (self.end - now) / self.fall))


# --- pictures and captions --------------------------------------------------------------------------------------------


def catalogue() -> dict[str, str]:
    """Emoji by name, of those this recipe draws; SystemExit if the installed `emoji` package lacks one of them."""
    import emoji

    known = {
        d["en"].strip(":"): e for e, d in emoji.EMOJI_DATA.items() if d["status"] == emoji.STATUS["fully_qualified"]
    }
    names = list(dict.fromkeys([*EASY.split(), *REST.split()]))
    if missing := [name for name in names if name not in known]:
        raise SystemExit(f"the installed emoji package doesn't name {', '.join(missing)}")
    return {name: known[name] for name in names}


def words_of(names: dict[str, str]) -> list[list[str]]:
    """Return what each emoji may be called: its name first, then aliases and MORE_WORDS, none of them another's name."""
    import emoji

    plain = [name.replace("_", " ").replace("’", "'") for name in names]
    taken, out = {p.lower() for p in plain}, []
    for (name, glyph), own in zip(names.items(), plain, strict=True):
        aliases = [a.strip(":").replace("_", " ") for a in emoji.EMOJI_DATA[glyph].get("alias", [])]
        called = [own]
        spoken = [a for a in aliases if re.fullmatch(r"[a-z]{2,}( [a-z]{2,}){,2}", a) and a not in UNSPOKEN]
        for word in [*MORE_WORDS.get(name, []), *spoken]:
            if word.lower() not in taken:
                taken.add(word.lower())
                called.append(word)
        out.append(called)
    return out


def with_article(word: str) -> str:
    """Name with an article: `an apple`, `a pear`, but plain `french fries`."""
    if word.endswith("s") and not word.endswith("ss"):
        return word
    return f"{'an' if word[0].lower() in 'aeio8' else 'a'} {word}"


def turned(word: str) -> str:
    """`red apple` as an index would list it, `apple, red`."""
    first, _, last = word.rpartition(" ")
    return f"{last}, {first}" if first else last


def caption(called: list[list[str]], pick: tuple[int, ...], rng: np.random.Generator) -> str:
    """Return a caption for the picture of one or two emoji."""
    # The first of an emoji's names is long for some ("smiling face with heart-eyes"), so it has no privilege.
    a, *more = (called[i][int(rng.integers(len(called[i])))] for i in pick)
    if more:
        b = more[0]
        form = PAIR[int(rng.integers(len(PAIR)))]
        return form.format(a=a, b=b, one=with_article(a), other=with_article(b))
    if " " in a and rng.random() < 0.05:  # "apple" alone may be red or green
        a = a.rpartition(" ")[2]
    return SINGLE[int(rng.integers(len(SINGLE)))].format(a=a, one=with_article(a), turned=turned(a))


def draw_glyph(font: Any, glyph: str) -> np.ndarray:
    """Return the font's picture of `glyph` on white, (64, 64, 3) uint8, a pixel of margin around it."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((FONT_SIZE // 2, FONT_SIZE // 2), glyph, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise SystemExit(f"the font draws nothing for {glyph!r}")
    side = max(136, box[2] - box[0], box[3] - box[1])  # 136 is the widest; what is drawn small stays small
    x, y = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(canvas.crop((x, y, x + side, y + side)))
    small = square.convert("RGB").resize((SIDE - 2, SIDE - 2), Image.Resampling.LANCZOS)
    return np.pad(np.asarray(small), ((1, 1), (1, 1), (0, 0)), constant_values=255)


def render(file: Path, font: Path, limit: int) -> None:
    """Stage *pictures*: the pictures (N, 64, 64, 3), what they are called and how many of them are easy, in one npz."""
    from PIL import ImageFont

    if not font.exists():
        raise SystemExit(f"no font {font}: install fonts-noto-color-emoji, or name another with --font")
    names = dict(list(catalogue().items())[:limit])
    loaded = ImageFont.truetype(str(font), FONT_SIZE)
    pictures = np.stack([draw_glyph(loaded, glyph) for glyph in names.values()])
    easy = len([name for name in names if name in set(EASY.split())])
    scratch = file.with_name(f"new-{file.name}")
    np.savez_compressed(scratch, pictures=pictures, called=json.dumps(words_of(names)), easy=easy)
    scratch.replace(file)


@dataclass(frozen=True)
class Pictures:
    """The rendered emoji, easy ones first."""

    pixels: np.ndarray  # (N, 64, 64, 3) uint8
    called: list[list[str]]
    easy: int

    @classmethod
    def load(cls, file: Path) -> Pictures:
        """Read what `render` wrote."""
        with np.load(file) as data:
            return cls(data["pictures"], json.loads(str(data["called"])), int(data["easy"]))

    def show(self, pick: tuple[int, ...]) -> np.ndarray:
        """One emoji, or two side by side at half the size, (64, 64, 3) uint8."""
        if len(pick) == 1:
            return np.asarray(self.pixels[pick[0]])
        quarters = self.pixels[list(pick)].reshape(2, SIDE // 2, 2, SIDE // 2, 2, 3)
        halves = quarters.mean((2, 4)).round().astype(np.uint8)
        out = np.full((SIDE, SIDE, 3), 255, np.uint8)
        out[SIDE // 4 : -SIDE // 4] = np.concatenate(list(halves), axis=1)
        return out

    def pick(self, rng: np.random.Generator, pairs: float) -> tuple[int, ...]:
        """Two easy emoji with probability `pairs`, else one of all, the easy ones twice as likely as the others."""
        if rng.random() < pairs:
            a, b = rng.choice(self.easy, 2, replace=False)
            return int(a), int(b)
        i = int(rng.integers(len(self.pixels) + self.easy))
        return (i if i < len(self.pixels) else i - len(self.pixels),)


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) as float (B, 3, H, W) from −1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_pixels(images: Tensor) -> np.ndarray:
    """Return the inverse of `to_tensor`, clipped and rounded."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def make_tokenizer(texts: Iterable[str], shape: Shape) -> CLIPTokenizer:
    """CLIP's byte-level BPE with a vocabulary of its own: frequent words are one token, unknown ones fall into bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    # CLIP wants every byte as the end of a word too; the trainer learns only those that it has seen there.
    ends = [f"{byte}</w>" for byte in sorted(pre_tokenizers.ByteLevel.alphabet())]
    rules = CLIPTokenizer().backend_tokenizer
    raw = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    raw.normalizer, raw.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab - len(ends),
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    learned = json.loads(raw.to_str())["model"]
    ids = dict.fromkeys([*learned["vocab"], *ends])
    return CLIPTokenizer(
        {piece: i for i, piece in enumerate(ids)},
        [tuple(m) for m in learned["merges"]],
        model_max_length=shape.window,
    )


# --- networks ---------------------------------------------------------------------------------------------------------


def build_vae(shape: Shape) -> AutoencoderKL:
    """Return an untrained autoencoder of two halvings; without attention, which the sizes here don't need."""
    blocks = len(shape.vae)
    return AutoencoderKL(
        block_out_channels=shape.vae,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=shape.groups,
        mid_block_add_attention=False,
        sample_size=SIDE,
    )


def vae_loss(vae: AutoencoderKL, images: Tensor, weight: float = 1e-4) -> Tensor:
    """Absolute and squared error of images (B, 3, H, W), and `weight` times the latents' divergence from a normal.

    That weight is large as such models go: it leaves some noise in the latents, and a decoder used to noise forgives
    the denoiser its small errors.
    """
    posterior = vae.encode(images).latent_dist
    drawn: Tensor = vae.decode(posterior.sample()).sample.float()
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence: Tensor = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).mean()
    return nn.functional.l1_loss(drawn, images) + nn.functional.mse_loss(drawn, images) + weight * divergence


def vae_batch(pictures: Pictures, plan: Plan, step: int, device: torch.device) -> Tensor:
    """Return the images of `step`, (B, 3, H, W): single and paired emoji, every third one shifted and perhaps mirrored."""
    rng, rows = np.random.default_rng((11, step)), []
    for i in range(plan.batch):
        picture = pictures.show(pictures.pick(rng, 0.25))
        if i % 3 == 0:
            picture = np.roll(picture, rng.integers(-8, 9, 2), (0, 1))
            picture = picture[:, :: int(rng.choice([1, -1]))]
        rows.append(picture)
    return to_tensor(np.stack(rows)).to(device)


# --- training ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818
    """The run was asked to end before its plan did; its checkpoint is written."""


def run(
    name: str,
    model: nn.Module,
    steppers: list[torch.optim.Optimizer],
    plan: Plan,
    loss_of: Callable[[int], Tensor],
    work: Path,
    *,
    deadline: Deadline | None = None,
    look: Callable[[nn.Module, int], dict[str, Any]] = lambda *_: {},
) -> nn.Module:
    """Train `model` by `plan`, checkpointing in `work`, and return its averaged weights; picks up a checkpoint it finds.

    The number of steps and the share of the fall may differ from the checkpoint's, the rest of the plan may not
    (SystemExit). `look` sees the averaged model at every log line and adds to it. Raises `Stopped` after SIGTERM.
    """
    device = next(model.parameters()).device
    file, step, done = work / f"{name}.ckpt", 0, False
    average = copy.deepcopy(model).eval().requires_grad_(False)
    fixed = {k: v for k, v in asdict(plan).items() if k not in ("steps", "decay")}
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        if state["plan"] != fixed:
            raise SystemExit(f"{file} was made with another plan; remove it to start over")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for stepper, saved in zip(steppers, state["steppers"], strict=True):
            stepper.load_state_dict(saved)
        step, done = state["step"], state["ended"] >= plan.steps
    model.train()
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    started, first, recent = time.monotonic(), step, []
    while not done and step < plan.steps:
        left = deadline.left(time.time()) if deadline else 1.0
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = plan.rate(step, left)
        torch.manual_seed(step)  # noise and dropped captions are then the same in a resumed run
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        recent.append(loss.item())
        step += 1
        keep = min(plan.average, step / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        done = step >= plan.steps or left <= 0
        if step % plan.every == 0 or done or asked:
            pace = (step - first) / (time.monotonic() - started)
            line = {
                "run": name,
                "step": step,
                "of": plan.steps,
                "loss": round(sum(recent) / len(recent), 5),
                "rate": round(plan.rate(step - 1, left), 6),
                "pictures_per_s": round(pace * plan.batch, 1),
                "minutes_left": round((plan.steps - step) / pace / 60),
                **look(average, step),
            }
            recent.clear()
            print(json.dumps(line), flush=True)
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            scratch = file.with_suffix(".tmp")
            kept = {"plan": fixed, "step": step, "ended": plan.steps if done else 0, "model": model.state_dict()}
            kept |= {"average": average.state_dict(), "steppers": [s.state_dict() for s in steppers]}
            torch.save(kept, scratch)
            scratch.replace(file)
            if asked and not done:
                raise Stopped(name)
    signal.signal(signal.SIGTERM, before)
    return average


def adam(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """AdamW for the weights that want a gradient, without decay for norms and biases."""
    taught = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in taught if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in taught if p.ndim == 1], "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98), fused=True)]


@torch.no_grad()
def faithfulness(vae: AutoencoderKL, pixels: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures (N, 64, 64, 3) that went through the autoencoder, their mean."""
    device, found = next(vae.parameters()).device, []
    for start in range(0, len(pixels), 64):
        images = to_tensor(pixels[start : start + 64]).to(device)
        drawn = to_pixels(vae(images, sample_posterior=False).sample)
        error = (drawn.astype(np.float32) - pixels[start : start + 64]) / 255
        found.append(-10 * np.log10(np.maximum((error**2).mean((1, 2, 3)), 1e-10)))
    return float(np.concatenate(found).mean())


def vae_look(sample: np.ndarray) -> Callable[[nn.Module, int], dict[str, Any]]:
    """Return the log line for an autoencoder, judged by the pictures `sample`."""
    return lambda average, _: {"psnr": round(faithfulness(average, sample), 2)}


def train_vae(pictures: Pictures, shape: Shape, plan: Plan, work: Path) -> AutoencoderKL:
    """Stage *vae*."""
    torch.manual_seed(0)
    device = pick_device()
    vae = build_vae(shape).to(device)
    sample = pictures.pixels[:: max(1, len(pictures.pixels) // 64)]

    def loss_of(step: int) -> Tensor:
        return vae_loss(vae, vae_batch(pictures, plan, step, device))

    return run("vae", vae, adam(vae, plan), plan, loss_of, work, look=vae_look(sample))


# --- latents and the denoiser -----------------------------------------------------------------------------------------


def scheduler() -> DDIMScheduler:
    """Return the noise schedule of training, and the folder's default sampler.

    The linear betas of DDPM end in almost pure noise (α̅ = 4e-5), which pictures on white need: with a schedule that
    still shows the mean at the last step, a sampler that begins with pure noise ends in grey (arXiv 2305.08891). Zero
    would be purer, but then σ is infinite and samplers that count in σ need exceptions. `trailing` begins at that
    noise, whatever the number of steps.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # the pipeline asks for it; with `trailing` it changes nothing
        clip_sample=False,
    )


def build_denoiser(shape: Shape, tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """Return an untrained UNet and its text encoder, `unet` and `text`.

    The UNet looks at the tokens at 8 × 8 and below; the caption as a whole also joins the time embedding, which every
    block sees.
    """
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.text,
            intermediate_size=2 * shape.text,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.window,
            projection_dim=shape.text,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )
    deeper = len(shape.unet) - 1
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=shape.unet,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=shape.groups,
        cross_attention_dim=shape.text,
        attention_head_dim=shape.heads,  # diffusers' historical name for the number of heads
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=shape.time,
        addition_embed_type="text",
        addition_embed_type_num_heads=shape.heads,
    )
    # The fused kernel's backward pass takes 40 % of a step on a CPU with maps this small.
    unet.set_attn_processor(AttnProcessor())
    return nn.ModuleDict({"unet": unet, "text": text})


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: Pictures) -> tuple[Tensor, float]:
    """Stage *latents*: of each emoji, then of each ordered pair of easy ones, (N, 4, 16, 16) float16 of deviation 1.

    Also returns the factor that made it so.
    """
    device, found = next(vae.parameters()).device, []
    easy = range(pictures.easy)
    picks = [(i,) for i in range(len(pictures.pixels))] + [(a, b) for a in easy for b in easy if a != b]
    for start in range(0, len(picks), 64):
        images = to_tensor(np.stack([pictures.show(pick) for pick in picks[start : start + 64]]))
        found.append(vae.encode(images.to(device)).latent_dist.mean.cpu())
    latents = torch.cat(found)
    factor = 1 / float(latents[: len(pictures.pixels)].std())
    return (latents * factor).half(), factor


def place(pick: tuple[int, ...], pictures: Pictures) -> int:
    """Where `encode_all` put the picture of `pick`."""
    if len(pick) == 1:
        return pick[0]
    a, b = pick
    return len(pictures.pixels) + a * (pictures.easy - 1) + b - (b > a)


def tokens(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> Tensor:
    """Token ids (B, T), T the tokenizer's window, as the pipeline feeds them."""
    rows = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    return torch.as_tensor(rows).to(device)


@dataclass(frozen=True)
class Material:
    """What the denoiser learns from."""

    pictures: Pictures
    latents: Tensor  # (N, 4, 16, 16) float16, see `encode_all`
    tokenizer: CLIPTokenizer
    noise: DDIMScheduler

    def batch(self, shape: Shape, plan: Plan, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Latents (B, 4, 16, 16) and token ids (B, T) of `step`; some captions are empty."""
        rng, rows, texts = np.random.default_rng((12, step)), [], []
        for _ in range(plan.batch):
            pick = self.pictures.pick(rng, shape.pairs)
            text = caption(self.pictures.called, pick, rng)
            rows.append(place(pick, self.pictures))
            texts.append("" if rng.random() < shape.drop else text)
        return self.latents[rows].float().to(device), tokens(self.tokenizer, texts, device)


def denoiser_loss(model: nn.ModuleDict, batch: tuple[Tensor, Tensor], noise: DDIMScheduler, limit: float) -> Tensor:
    """Squared error of v at times spread evenly over the batch, none of which counts more than at the ratio `limit`.

    In terms of the clean latents the weight is min(SNR, limit) + 1: a min-SNR weighting (arXiv 2303.09556) that does
    not vanish in pure noise, where it is decided what the picture shows.
    """
    latents, ids = batch
    count = len(latents)
    spread = (torch.arange(count) + torch.rand(count)) / count
    times = (spread * noise.config.num_train_timesteps).long().to(latents.device)
    eps = torch.randn(latents.shape).to(latents.device)
    noisy, goal = noise.add_noise(latents, eps, times), noise.get_velocity(latents, eps, times)
    guess: Tensor = model["unet"](noisy, times, model["text"](ids).last_hidden_state).sample.float()
    kept = noise.alphas_cumprod.to(latents.device)[times]
    ratio = kept / (1 - kept)
    weight: Tensor = (ratio.clamp(max=limit) + 1) / (ratio + 1)
    error: Tensor = (guess - goal).pow(2).mean((1, 2, 3)) * weight
    return error.mean()


def pipeline(vae: AutoencoderKL, model: nn.Module, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """Assemble the networks into an ordinary pipeline."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.get_submodule("text"),
        tokenizer=tokenizer,
        unet=model.get_submodule("unet"),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def draw(pipe: StableDiffusionPipeline, prompts: list[str], steps: int, guidance: float = GUIDANCE) -> np.ndarray:
    """One picture per prompt, (N, 64, 64, 3) uint8; the n-th has seed n."""
    found = []
    for start in range(0, len(prompts), 20):
        part = prompts[start : start + 20]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        out = pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=seeds, output_type="np")
        found.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(found)


def sheet(images: np.ndarray, columns: int = 10) -> np.ndarray:
    """Pictures (N, H, W, 3) side by side in rows of `columns`, with white for what is missing."""
    rows, (height, width) = math.ceil(len(images) / columns), images.shape[1:3]
    out = np.full((rows * columns, height, width, 3), 255, np.uint8)
    out[: len(images)] = images
    return out.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def recognised(images: np.ndarray, wanted: list[int], pictures: Pictures) -> float:
    """Share of drawings (N, 64, 64, 3) that no emoji's picture is nearer to than the one at the wanted place."""

    def small(pixels: np.ndarray) -> Tensor:  # at half the size, so that a pixel's shift doesn't matter
        return nn.functional.avg_pool2d(to_tensor(pixels), 2).flatten(1)

    nearest = torch.cdist(small(images), small(pictures.pixels)).argmin(1)
    return float((nearest == torch.tensor(wanted)).float().mean())


COMMON = [
    "grinning face", "red heart", "cat", "dog", "pizza", "sun", "moon", "star", "tree", "house",
    "car", "rocket", "fire", "red apple", "thumbs up", "ghost", "umbrella", "airplane", "rose", "cat and moon",
]  # fmt: skip
"""What the contact sheets show."""


def train_denoiser(
    material: Material, vae: AutoencoderKL, setup: Setup, work: Path, deadline: Deadline | None
) -> nn.Module:
    """Stage *denoiser*: UNet and text encoder; now and then a contact sheet of `COMMON` and some others."""
    from PIL import Image

    torch.manual_seed(0)
    device, pictures, shape, plan = pick_device(), material.pictures, setup.shape, setup.denoiser
    model = build_denoiser(shape, material.tokenizer).to(device)
    places = list(range(0, len(pictures.pixels), max(1, len(pictures.pixels) // 40)))

    last = time.monotonic()

    def look(average: nn.Module, step: int) -> dict[str, Any]:
        nonlocal last
        if time.monotonic() - last < 60 * setup.sheet_minutes and step < plan.steps:
            return {}
        last = time.monotonic()
        pipe = pipeline(vae, average, material.tokenizer)
        drawn = draw(pipe, [*COMMON, *(pictures.called[i][0] for i in places)], setup.sheet_steps)
        Image.fromarray(sheet(drawn)).save(work / f"sheet-{step:06}.png")
        return {"recognised": round(recognised(drawn[len(COMMON) :], places, pictures), 3)}

    def loss_of(step: int) -> Tensor:
        return denoiser_loss(model, material.batch(shape, plan, step, device), material.noise, shape.snr)

    return run("denoiser", model, adam(model, plan), plan, loss_of, work, deadline=deadline, look=look)


def train_decoder(material: Material, vae: AutoencoderKL, plan: Plan, work: Path) -> AutoencoderKL:
    """Stage *decoder*: the autoencoder's second half goes on learning from the latents that the denoiser learned.

    They don't change any more, so this can be done at any time, and as well as time allows.
    """
    torch.manual_seed(0)
    device, pictures, vae = pick_device(), material.pictures, copy.deepcopy(vae)
    vae.requires_grad_(False)
    for part in (vae.post_quant_conv, vae.decoder):
        part.requires_grad_(True)
    sample = pictures.pixels[:: max(1, len(pictures.pixels) // 64)]

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((13, step))
        picks = [pictures.pick(rng, 0.2) for _ in range(plan.batch)]
        images = to_tensor(np.stack([pictures.show(pick) for pick in picks])).to(device)
        latents = material.latents[[place(pick, pictures) for pick in picks]].float()
        noisy = latents + 0.05 * torch.randn(latents.shape)  # about what the denoiser gets wrong
        drawn = vae.decode(noisy.to(device) / vae.config.scaling_factor).sample.float()
        return nn.functional.l1_loss(drawn, images) + nn.functional.mse_loss(drawn, images)

    return run("decoder", vae, adam(vae, plan), plan, loss_of, work, look=vae_look(sample))


# --- export -----------------------------------------------------------------------------------------------------------


def half(model: nn.Module) -> nn.Module:
    """Return a copy in float16, or in bfloat16 if a weight is too large for that."""
    if not all(p.isfinite().all() for p in model.parameters()):
        raise SystemExit("training diverged: a weight is not finite")
    most = max(p.abs().max().item() for p in model.parameters())
    return copy.deepcopy(model).to(torch.float16 if most < torch.finfo(torch.float16).max / 2 else torch.bfloat16)


def export(
    vae: AutoencoderKL, model: nn.Module, material: Material, setup: Setup, folder: Path, taken: int
) -> dict[str, Any]:
    """Stage *export*: write `folder`, then measure what was written, for the card and the caller.

    `taken` is the number of steps that the denoiser's training took.
    """
    material.tokenizer.backend_tokenizer.no_padding()  # the last call's settings would be saved with it
    material.tokenizer.backend_tokenizer.no_truncation()
    parts = nn.ModuleDict({name: half(model.get_submodule(name)) for name in ("unet", "text")})
    pipeline(half(vae), parts, material.tokenizer).save_pretrained(folder)
    (folder / "dynx.json").write_text(
        json.dumps({"guidance": GUIDANCE}) + "\n", "utf-8"
    )  # diffusers has no place for it
    file = folder / "tokenizer" / "tokenizer.json"  # a third smaller without the indentation
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")), ensure_ascii=False, separators=(",", ":")), "utf-8")

    pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32).to(pick_device())
    pipe.set_progress_bar_config(disable=True)
    pictures = material.pictures
    drawn = draw(pipe, [called[0] for called in pictures.called], setup.sheet_steps)
    figures = {
        "name": "emoji",
        "parameters": {
            part: sum(p.numel() for p in getattr(pipe, part).parameters()) for part in ("unet", "text_encoder", "vae")
        },
        "emoji": len(pictures.pixels),
        "easy": pictures.easy,
        "vocabulary": len(material.tokenizer),
        "vae_psnr": faithfulness(pipe.vae, pictures.pixels),
        "recognised": recognised(drawn, list(range(len(drawn))), pictures),
        "steps": setup.sheet_steps,
        "steps_taken": taken,
        "megabytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6,
        "plan": asdict(setup),
    }
    (folder / "README.md").write_text(card(figures, pipe.unet.config, setup), encoding="utf-8")
    print(json.dumps(figures), flush=True)
    return figures


def card(figures: dict[str, Any], unet: Any, setup: Setup) -> str:
    """Return the model card, from the figures measured at export."""
    sizes, plan, pairs = figures["parameters"], setup.denoiser, setup.shape.pairs
    seen = figures["steps_taken"] * plan.batch * (1 - pairs) / (figures["emoji"] + figures["easy"])
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-to-image
---
# emoji

A latent diffusion model of {sum(sizes.values()) / 1e6:.1f} M parameters that draws an emoji of 64 × 64 pixels from a
caption: a `StableDiffusionPipeline` with v-prediction, without a safety checker (it has seen nothing but emoji). It
exists to show what dynamic execution does to diffusion at a size that installs with the tool.

| denoiser | text encoder | autoencoder | channels of the denoiser | vocabulary | weights |
| --- | --- | --- | --- | --- | --- |
| {sizes["unet"] / 1e6:.2f} M | {sizes["text_encoder"] / 1e6:.2f} M | {sizes["vae"] / 1e6:.2f} M | \
{", ".join(map(str, unet.block_out_channels))} at 16, 8, 4 | {figures["vocabulary"]} | 16 bit |

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained("emoji", safety_checker=None)
    pipe("a cat and a moon", guidance_scale={GUIDANCE}).images[0].save("cat.png")

A guidance of {GUIDANCE} is what the figures here are measured with; far above it colours saturate.

**Figures.** Of {figures["emoji"]} drawings, one for each emoji's name in {figures["steps"]} DDIM steps,
**{figures["recognised"]:.1%}** are nearer to that emoji's picture than to any other's. The autoencoder alone gives the
pictures back at {figures["vae_psnr"]:.1f} dB.

**Recipe.** `python -m dynx.shipped.recipes.emoji`. The autoencoder learned for {setup.vae.steps} steps of
{setup.vae.batch} pictures; denoiser and text encoder together for {figures["steps_taken"]} of {plan.batch}, so that each
emoji was seen about {seen:.0f} times and the {figures["easy"]} best known twice as often; then the decoder alone for
{setup.decoder.steps} of {setup.decoder.batch}. {pairs:.0%} of the pictures are two of the best known side by side. AdamW,
peak rate {plan.lr:g}, averaged weights.

**Data.** Noto Emoji (Google, SIL Open Font License 1.1), rendered from Debian's `fonts-noto-color-emoji`; captions from
the Unicode CLDR short names and aliases in the Python package `emoji`.

**Limits.** It draws the emoji that it was shown, from memory, and mixes them when a caption names none of them. Pairs are
learned for the best known only. No writing, no styles, no other language than English.
"""


def deadline_of(text: str | None, minutes: float, now: dt.datetime) -> Deadline | None:
    """Return the next time the clock shows `text`, HH:MM, after `now`; None without a text."""
    if text is None:
        return None
    hour, minute = map(int, text.split(":"))
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if end <= now:
        end += dt.timedelta(days=1)
    return Deadline(end.timestamp(), 60 * minutes)


STAGES = ["pictures", "vae", "latents", "denoiser", "decoder", "export"]


@dataclass(frozen=True)
class Setup:
    """Everything that `--tiny` makes small."""

    shape: Shape = field(default_factory=Shape)
    vae: Plan = field(default_factory=lambda: Plan(steps=2_000))
    denoiser: Plan = field(
        default_factory=lambda: Plan(batch=32, steps=40_000, lr=1e-3, warmup=200, decay=0.3, average=0.999, every=100)
    )
    decoder: Plan = field(default_factory=lambda: Plan(steps=3_000, lr=1e-3))
    most: int = 10_000  # emoji
    sheet_minutes: float = 20  # between two contact sheets
    sheet_steps: int = 20  # of denoising

    @classmethod
    def tiny(cls) -> Setup:
        """For tests of the recipe, not of what it makes."""
        few: dict[str, Any] = {"batch": 4, "steps": 4, "warmup": 2, "every": 2}
        big = cls()
        return cls(
            Shape((8, 8, 8), (8, 8, 16), time=16, text=16, text_layers=1, vocab=600, heads=2, groups=4),
            replace(big.vae, **few),
            replace(big.denoiser, **few),
            replace(big.decoder, **few),
            most=12,
            sheet_minutes=0,
            sheet_steps=1,
        )


def prepare(o: argparse.Namespace, setup: Setup) -> tuple[Pictures, CLIPTokenizer]:
    """Stage *pictures*: pictures.npz and tokenizer/ in the work folder."""
    file, folder = o.work / "pictures.npz", o.work / "tokenizer"
    if not file.exists():
        render(file, o.font, setup.most)
    pictures = Pictures.load(file)
    if not (folder / "tokenizer.json").exists():
        rng = np.random.default_rng(0)
        texts = [caption(pictures.called, pictures.pick(rng, 0.1), rng) for _ in range(50 * len(pictures.pixels))]
        make_tokenizer(texts, setup.shape).save_pretrained(folder)
    return pictures, CLIPTokenizer.from_pretrained(folder)


def stages(o: argparse.Namespace, setup: Setup, deadline: Deadline | None) -> None:
    """Run the stages up to `o.until`, each as far as it has not run."""
    until, device = STAGES.index(o.until), pick_device()
    pictures, tokenizer = prepare(o, setup)
    start = {"emoji": len(pictures.pixels), "vocabulary": len(tokenizer), "device": str(device)}
    print(json.dumps(start), flush=True)
    if until < STAGES.index("vae"):
        return
    vae = train_vae(pictures, setup.shape, setup.vae, o.work)
    if until < STAGES.index("latents"):
        return
    file = o.work / "latents.pt"
    if not file.exists():
        latents, factor = encode_all(vae, pictures)
        torch.save({"latents": latents, "factor": factor}, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
    saved = torch.load(file, weights_only=True)
    vae.register_to_config(scaling_factor=saved["factor"])
    if until < STAGES.index("denoiser"):
        return
    material = Material(pictures, saved["latents"], tokenizer, scheduler())
    model = train_denoiser(material, vae, setup, o.work, deadline)
    if until < STAGES.index("decoder"):
        return
    vae = train_decoder(material, vae, setup.decoder, o.work)
    if until < STAGES.index("export"):
        return
    taken = torch.load(o.work / "denoiser.ckpt", weights_only=True, mmap=True)["step"]
    export(vae, model, material, setup, o.out or o.work / "emoji", taken)


def main(argv: list[str] | None = None) -> None:
    """Run the stages that have not run yet."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, default=Path("build/emoji"), help="pictures, checkpoints, log, samples")
    p.add_argument("--out", type=Path, help="the folder to export (default: WORK/emoji)")
    p.add_argument("--font", type=Path, default=FONT, help="Noto's colour font with bitmaps")
    p.add_argument("--until", choices=STAGES, default="export")
    p.add_argument("--steps", type=int, help="of the denoiser; may change from run to run")
    p.add_argument("--decay", type=float, help="share of those over which the rate falls to zero; may change too")
    p.add_argument("--finish-by", metavar="HH:MM", help="end the denoiser's training then, whatever --steps says")
    p.add_argument("--fall", type=float, default=45, metavar="MINUTES", help="for how long before that the rate falls")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = PyTorch's choice")
    p.add_argument("--tiny", action="store_true", help="a few steps of a minute model, to test the recipe")
    o = p.parse_args(argv)
    if o.threads:
        torch.set_num_threads(o.threads)
    setup = Setup.tiny() if o.tiny else Setup()
    changed = {key: value for key, value in (("steps", o.steps), ("decay", o.decay)) if value is not None}
    setup = replace(setup, denoiser=replace(setup.denoiser, **changed))
    o.work.mkdir(parents=True, exist_ok=True)
    try:
        stages(o, setup, deadline_of(o.finish_by, o.fall, dt.datetime.now()))
    except Stopped as stopped:
        print(json.dumps({"stopped": str(stopped)}), flush=True)


if __name__ == "__main__":
    main()
