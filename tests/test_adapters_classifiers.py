"""Classifiers from elsewhere: p(y | x) of modules and of scikit-learn, in the order of the data's classes."""

import json

import numpy as np
import polars
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import loglik
from helpers.commands import well
from loglik.adapters import classifier, load, loading
from loglik.adapters.pixels import Pixels
from loglik.data import as_data

MEANS = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 2.0]], dtype=torch.float64)


def gaussians(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Points about three means with unit variance, and which mean."""
    y = torch.arange(n) % 3
    return MEANS[y] + torch.randn(n, 2, dtype=torch.float64), y


def posterior(x: torch.Tensor) -> torch.Tensor:
    """log p(y | x) by Bayes' rule."""
    joint = -0.5 * (x.double()[:, None] - MEANS).square().sum(-1)
    return joint - joint.logsumexp(1, keepdim=True)


class Linear(nn.Linear):
    """Logits of the exact posterior: x·m - m²/2."""

    def __init__(self) -> None:
        super().__init__(2, 3, dtype=torch.float64)
        self.weight.data, self.bias.data = MEANS.clone(), -0.5 * MEANS.square().sum(1)


def test_logits_of_the_exact_posterior_give_its_nats() -> None:
    x, y = gaussians()
    truth = posterior(x).gather(1, y[:, None]).squeeze(1)
    density = classifier(Linear(), classes=3).double()
    torch.testing.assert_close(density.log_prob(y, x), truth, atol=1e-12, rtol=0)
    by_p = classifier(nn.Sequential(Linear(), nn.Softmax(1)), classes=3, outputs="probabilities").double()
    torch.testing.assert_close(by_p.log_prob(y, x), truth, atol=1e-9, rtol=0)
    function = classifier(lambda inputs: posterior(inputs) + 7, classes=3).double()
    torch.testing.assert_close(function.log_prob(y, x), truth, atol=1e-12, rtol=0)
    result = loglik.evaluate(density, (x, y))
    assert result.event == "y" and result.bound == "exact"
    assert result.nats == pytest.approx(truth.mean().item(), abs=1e-6)  # data are stored in float32
    assert result.accuracy == pytest.approx((posterior(x).argmax(1) == y).double().mean().item())
    assert np.trace(result.confusion) == round(result.accuracy * 300)
    drawn = density.sample(300, x)
    assert (drawn == posterior(x).argmax(1)).double().mean() > 0.5


def test_one_logit_is_that_of_the_second_class() -> None:
    x, y = torch.randn(40, 1, dtype=torch.float64), torch.arange(40) % 2
    truth = torch.where(y == 1, F.logsigmoid(3 * x[:, 0]), F.logsigmoid(-3 * x[:, 0]))
    for logit in (lambda v: 3 * v, lambda v: 3 * v[:, 0]):
        torch.testing.assert_close(classifier(logit, classes=("no", "yes")).double().log_prob(y, x), truth)
    p = classifier(lambda v: (3 * v).sigmoid(), classes=2, outputs="probabilities").double()
    torch.testing.assert_close(p.log_prob(y, x), truth)
    with pytest.raises(ValueError, match='outputs lie between 0 and 1: pass outputs="probabilities"'):
        classifier(lambda v: (3 * v).sigmoid(), classes=2).double().log_prob(y, x)


def test_logits_and_probabilities_are_told_apart() -> None:
    x, y = gaussians()
    with pytest.raises(ValueError, match='sum to 1 in each row: pass outputs="probabilities"'):
        classifier(nn.Sequential(Linear(), nn.Softmax(1)), classes=3).double().log_prob(y, x)
    with pytest.raises(ValueError, match=r'outputs="probabilities", and the model\'s outputs have rows that sum to -'):
        classifier(Linear(), classes=3, outputs="probabilities").double().log_prob(y, x)
    with pytest.raises(ValueError, match=r"returns \(300, 3\) for examples of 4 classes: expected \(300, 4\)"):
        classifier(Linear(), classes=4).double().log_prob(y, x)
    with pytest.raises(ValueError, match="outputs must be logits or probabilities, got 'odds'"):
        classifier(Linear(), classes=3, outputs="odds")
    with pytest.raises(ValueError, match="the model returns str"):
        classifier(lambda inputs: "cat", classes=3).double().log_prob(y, x)
    with pytest.raises(ValueError, match="give classes="):
        classifier(Linear())
    with pytest.raises(ValueError, match="two have the same name"):
        classifier(Linear(), classes=["a", "a", "b"])
    with pytest.raises(ValueError, match="a module, a function or a classifier of scikit-learn, got int"):
        classifier(3, classes=2)


def test_the_outputs_are_put_in_the_order_of_the_data() -> None:
    x, y = gaussians()
    data = as_data(
        {"x": x[:, 0].numpy(), "z": x[:, 1].numpy(), "kind": np.array(["cat", "ant", "bee"])[y]}, label="kind"
    )
    assert data.spec.classes == ("ant", "bee", "cat")
    truth = posterior(x).gather(1, y[:, None]).mean().item()
    density = classifier(Linear(), classes=("cat", "ant", "bee"), spec=data.spec)
    assert loglik.evaluate(density, data).nats == pytest.approx(truth, abs=1e-6)
    with pytest.raises(
        ValueError, match=r"the model's classes are cat, ant, bee and the data's ant, bee, cat: give the"
    ):
        loglik.evaluate(classifier(Linear(), classes=("cat", "ant", "bee")), data)
    with pytest.raises(ValueError, match=r"the model has dog, the data ant; pass classes="):
        classifier(Linear(), classes=("cat", "dog", "bee"), spec=data.spec)
    assert (
        "taken as ant, bee, cat, in this order" in loglik.evaluate(classifier(Linear(), spec=data.spec), data).notes[0]
    )


def test_scikit_learn_s_log_probabilities(tmp_path) -> None:
    """Gaussian naive Bayes with the true means and variances is the exact posterior."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = gaussians()
    model = GaussianNB().fit(x.numpy(), y.numpy())
    model.theta_, model.var_, model.class_prior_ = MEANS.numpy(), np.ones((3, 2)), np.full(3, 1 / 3)
    density = classifier(model).double()
    assert density.class_names == ("0", "1", "2")
    torch.testing.assert_close(density.log_prob(y, x), posterior(x).gather(1, y[:, None]).squeeze(1))
    assert loglik.evaluate(density, (x, y)).accuracy > 0.7
    pipeline = make_pipeline(StandardScaler(), KNeighborsClassifier(3)).fit(x[:150].numpy(), y[:150].numpy())
    result = loglik.evaluate(classifier(pipeline), (x[150:], y[150:]))
    zeros = (pipeline.predict_proba(x[150:].float().double().numpy())[np.arange(150), y[150:].numpy()] == 0).sum()
    assert result.nats == -np.inf and result.stderr is None
    assert result.notes == (f"{zeros} of 150 examples have probability 0, so the mean is -inf",)
    forest = RandomForestClassifier(5, random_state=0).fit(x.numpy(), np.array(["cat", "ant", "bee"])[y])
    assert classifier(forest).class_names == ("ant", "bee", "cat")
    with pytest.raises(ValueError, match="GaussianNB does not fit the data: X has 1 features"):
        density.log_prob(y, x[:, :1])


def test_scikit_learn_reads_the_columns_by_their_names() -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(0)
    colour, size = rng.choice(["red", "blue", "green"], 200), rng.normal(size=200).round(3)
    label = np.where(size + (colour == "red") > rng.normal(size=200), "yes", "no")
    frame = pandas.DataFrame({"size": size, "colour": colour})
    model = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["colour"]), (StandardScaler(), ["size"])), LogisticRegression()
    ).fit(frame, label)
    data = as_data(frame[["colour", "size"]].assign(label=label), label="label")
    result = loglik.evaluate(classifier(model, spec=data.spec), data)
    own = model.predict_log_proba(frame)[np.arange(200), np.searchsorted(model.classes_, label)]
    assert result.nats == pytest.approx(own.mean(), abs=1e-6)
    with pytest.raises(ValueError, match="fitted to columns with names: pass spec="):
        classifier(model)
    other = as_data({"size": size, "label": label}, label="label")
    with pytest.raises(ValueError, match="needs the columns colour"):
        classifier(model, spec=other.spec)


def test_estimators_without_probabilities() -> None:
    from sklearn.linear_model import LogisticRegression, RidgeClassifier

    x, y = gaussians()
    with pytest.raises(ValueError, match="RidgeClassifier has no predict_proba"):
        classifier(RidgeClassifier().fit(x.numpy(), y.numpy()))
    with pytest.raises(ValueError, match="LogisticRegression is not fitted"):
        classifier(LogisticRegression())


def test_images_are_scaled_resized_and_normalised() -> None:
    """Integers become [0, 1], a grey image three channels, and then mean and standard deviation."""
    x = torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8)
    prepare = Pixels(256, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), channels=3)
    expected = (x / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(prepare(x), expected)
    assert Pixels(17)(torch.full((1, 1, 2, 2), 16, dtype=torch.uint8)).eq(1).all()
    picture = torch.randint(256, (30, 20, 3), dtype=torch.uint8)
    resized = np.asarray(Image.fromarray(picture.numpy()).resize((8, 12), Image.Resampling.BILINEAR))
    ours = Pixels(256, size=8)(picture.permute(2, 0, 1)[None]) * 255
    assert (ours[0].permute(1, 2, 0) - torch.from_numpy(resized.copy())).abs().max() <= 1.01
    cropped = Pixels(256, crop=(10, 30))(picture.permute(2, 0, 1)[None]) * 255
    torch.testing.assert_close(cropped[0, :, :, 5:25], picture.permute(2, 0, 1)[:, 10:20].float())
    assert cropped[..., :5].eq(0).all() and cropped[..., 25:].eq(0).all()
    with pytest.raises(ValueError, match="the model reads 1 channels, and the images have 3"):
        Pixels(channels=1)(picture.permute(2, 0, 1)[None])


@pytest.fixture
def folder(tmp_path):
    """Twelve small pictures in the folders cat and dog."""
    generator = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(6):
            picture = generator.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "pictures" / kind / f"{number}.png")
    return tmp_path


def test_a_vision_transformer_in_a_folder(folder) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=8, id2label={0: "dog", 1: "cat"}, **sizes)
    model = transformers.ViTForImageClassification(config).eval()
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder / "vit")
    own = {"do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "do_normalize": True,
           "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}  # fmt: skip
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(own))
    data = as_data(folder / "pictures")
    run = load("transformers", folder / "vit", data.spec)
    result = loglik.evaluate(run, folder / "pictures")
    x, y = data.split("all").x[:], data.split("all").labels()
    inputs = Pixels(size=(16, 16), mean=own["image_mean"], std=own["image_std"])(x)
    with torch.no_grad():
        nats = model(pixel_values=inputs).logits.log_softmax(1)[:, [1, 0]].gather(1, y[:, None])  # cat, dog
    assert result.nats == pytest.approx(nats.mean().item(), abs=1e-6)
    assert result.n == 12 and len(result.confusion) == 2

    def refusal(spec) -> str:
        with pytest.raises(ValueError) as error:
            load("transformers", folder / "vit", spec)
        return str(error.value)

    assert "needs images with labels, got no data" in refusal(None)
    (folder / "pictures" / "dog").rename(folder / "pictures" / "wolf")
    assert "the model has dog, the data wolf" in refusal(as_data(folder / "pictures").spec)
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps({**own, "resample": 1}))
    assert "resample is 1" in refusal(data.spec)
    (folder / "vit" / "preprocessor_config.json").unlink()
    assert (
        "pixels are scaled to [0, 1] and resized to (16, 16)"
        in load("transformers", folder / "vit", data.spec).density.notes[0]
    )


def test_a_classifier_is_scored_as_it_is(tmp_path) -> None:
    """evaluate, and the command line by a file of Python, wrap an estimator for the classes of the data."""
    from sklearn.naive_bayes import GaussianNB

    x, y = gaussians()
    names = np.array(["cat", "ant", "bee"])[y]
    frame = {"a": x[:, 0].numpy(), "b": x[:, 1].numpy(), "kind": names}
    (tmp_path / "rows.csv").write_text(
        "a,b,kind\n" + "".join(f"{a:.4f},{b:.4f},{kind}\n" for a, b, kind in zip(*frame.values(), strict=True))
    )
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom sklearn.naive_bayes import GaussianNB\n"
        f"model = GaussianNB().fit(np.array({x.tolist()}), {names.tolist()})\n"
    )
    out = well("evaluate", "--from", "python", f"{tmp_path}/mine.py:model", tmp_path / "rows.csv", "--label", "kind")
    own = GaussianNB().fit(x.numpy(), names)
    nats = own.predict_log_proba(x.numpy())[np.arange(300), np.searchsorted(own.classes_, names)].mean()
    assert f"{nats:.3f} ±" in out and "accuracy" in out
    codes = torch.from_numpy(np.searchsorted(own.classes_, names))
    assert loglik.evaluate(own, (x, codes)).nats == pytest.approx(nats, abs=1e-6)
    with pytest.raises(ValueError, match="the model's classes are ant, bee, cat and the data's 1, 2, 3: give the"):
        loglik.evaluate(own, as_data({"a": frame["a"], "b": frame["b"], "kind": (codes + 1).numpy()}, label="kind"))


def test_the_command_reads_a_folder(folder) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=8, id2label={0: "dog", 1: "cat"}, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    assert "12 examples" in well("evaluate", "--from", "transformers", folder / "vit", folder / "pictures")


def test_a_classifier_of_texts_in_a_folder(tmp_path) -> None:
    """Its own tokenizer reads each text whole, with its special tokens; the classes are put in the data's order."""
    transformers = pytest.importorskip("transformers")
    from helpers.language_models import tokenizer

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    limits = {"vocab_size": 300, "max_position_embeddings": 300}
    config = transformers.BertConfig(id2label={0: "good", 1: "bad"}, initializer_range=0.5, **limits, **sizes)
    model, words = transformers.BertForSequenceClassification(config).eval(), tokenizer()
    folder, table = tmp_path / "bert", tmp_path / "reviews.csv"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    texts = [f"Film {i} – naïve{' and long' * i}" for i in range(30)]  # also beyond the 256 bytes of our own models
    assert max(len(text.encode()) for text in texts) > 256
    names = ["good" if i % 3 else "bad" for i in range(30)]
    polars.DataFrame({"text": texts, "kind": names}).write_csv(table)
    out = well(
        "evaluate", "--from", "transformers", folder, table, "--label", "kind", "--per-row", tmp_path / "rows.csv"
    )
    assert "30 examples" in out and "accuracy" in out and "bits/byte" not in out
    with torch.no_grad():
        logits = [model(**words(text, return_tensors="pt", verbose=False)).logits[0] for text in texts]
    nats = [row.log_softmax(0)[int(name == "bad")].item() for row, name in zip(logits, names, strict=True)]
    assert polars.read_csv(tmp_path / "rows.csv")["nats"].to_list() == pytest.approx(nats, abs=1e-5)

    def refusal(data, **kwargs) -> str:
        with pytest.raises(ValueError) as error:
            loading.load_for("transformers", folder, data, **kwargs)
        return str(error.value)

    assert "needs a table with a column of texts and label=COLUMN, got texts" in refusal({"text": texts})
    assert "the model has good, the data fine" in refusal(
        {"text": texts, "kind": [name.replace("good", "fine") for name in names]}, label="kind"
    )
    run, data = loading.load_for(
        "transformers", folder, {"text": ["long " * 200, *texts[1:]], "kind": names}, label="kind"
    )
    with pytest.raises(ValueError, match="tokens, and the model reads 300"):
        loglik.evaluate(run, data)
