#!/usr/bin/env bash
# What a project without a GPU checks when it has one for ten minutes: the tests marked `gpu`, equal seeds and a killed
# training bit for bit, `make bench`, and a minute of training of each family with its defaults.
#
#   benchmarks/gpu.sh                          about 9 minutes on one card
#   DEVICE=cpu QUICK=1 benchmarks/gpu.sh       the same parts in about 2 minutes without one
#
# It installs nothing and needs no network. Settings, as environment variables:
#   OUT        folder for log.txt, results.json, summary.txt and RESULTS.md; a new temporary folder by default
#   PYTHON     the Python that has torch, python3 by default; loglik is taken from src
#   DEVICE     cuda by default
#   DATA       images to train on: fashion-mnist if LOGLIK_DATA or Debian's folder has it, else digits
#   TEXT       text to train on: tiny Shakespeare's file; this project's documentation by default
#   NANOGPT    folder with nanoGPT's model.py, a peer of the bench
#   MAX_TIME   of each training, 60s by default
#   LIMIT      seconds for all parts together, 535 by default
#   PARTS      parts to do, of: tests seeds bench trainings
set -u
cd "$(dirname "$0")/.." || exit 2

QUICK=${QUICK:-}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
LIMIT=${LIMIT:-535}
MAX_TIME=${MAX_TIME:-$([ "$QUICK" ] && echo 2s || echo 60s)}
PARTS=${PARTS:-tests seeds bench trainings}
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
WORK=$(mktemp -d)
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR="$WORK/inductor"
if [ "$DEVICE" = cpu ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi
if [ -z "${DATA:-}" ]; then
    DATA=digits
    for folder in "${LOGLIK_DATA:-/nowhere}" "${LOGLIK_DATA:-/nowhere}/fashion-mnist" /usr/share/datasets/fashion-mnist; do
        if [ -f "$folder/train-images-idx3-ubyte.gz" ]; then DATA=fashion-mnist; fi
    done
fi
if [ -z "${TEXT:-}" ]; then
    TEXT="$WORK/documentation.txt"
    cat docs/*.md >"$TEXT"
fi
: >"$OUT/log.txt"
children=""
trap 'kill $children 2>/dev/null; rm -rf "$WORK"' EXIT

left() { # seconds until LIMIT, at least 1
    local seconds=$((LIMIT - SECONDS))
    echo $((seconds > 1 ? seconds : 1))
}

wanted() { [[ " $PARTS " == *" $1 "* ]]; }

part() { # NAME SECONDS COMMAND...: run a part within its time and the rest of LIMIT, and note how it ended
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    if ((limit > $(left))); then limit=$(left); fi
    timeout -k 5 "$limit" "$@" >"$WORK/$name.log" 2>&1
    code=$?
    printf '{"part": "%s", "code": %d, "seconds": %d}\n' "$name" "$code" $((SECONDS - began)) >"$WORK/$name.part"
    {
        echo "== $name: code $code after $((SECONDS - began)) s$([ $code = 124 ] && echo ", stopped at its limit")"
        tail -c 20000 "$WORK/$name.log"
    } >>"$OUT/log.txt"
    "$PYTHON" benchmarks/gpu_report.py "$WORK" "$OUT" >/dev/null 2>>"$OUT/log.txt"
    echo "$name: code $code, $((SECONDS - began)) s"
}

seeds() { # equal seeds give equal weights, and a training that was killed and resumed gives the same
    local steps code=0 child other
    steps=$([ "$QUICK" ] && echo 60 || echo 300)
    local fit=("$PYTHON" -m loglik fit digits --model vae --device "$DEVICE" --max-steps "$steps" --set validate_every=20)
    "${fit[@]}" --out "$WORK/first" || return 1
    "${fit[@]}" --out "$WORK/second" || return 1
    "${fit[@]}" --out "$WORK/killed" &
    child=$!
    while kill -0 $child 2>/dev/null && ! ls "$WORK"/killed/checkpoints/*.safetensors >/dev/null 2>&1; do sleep 0.05; done
    kill -KILL $child 2>/dev/null
    wait $child 2>/dev/null
    "${fit[@]}" --out "$WORK/killed" --resume || return 1
    for other in second killed; do
        if cmp "$WORK/first/model.safetensors" "$WORK/$other/model.safetensors"; then
            echo "first and $other: the same weights, bit for bit"
        else
            code=1
        fi
    done
    return $code
}

bench() { # builds and compiles the sides until FILE exists, then measures
    local options=(--rounds 5 --jobs 14 --build-limit 110) only=()
    if [ "$QUICK" ]; then
        options=(--rounds 1 --jobs 2 --build-limit 100)
        only=(--only "diffusion,classifier")
        export BENCH_RUN_SECONDS=0.01
    else
        export BENCH_RUN_SECONDS=0.1
    fi
    cp benchmarks/RESULTS.md "$OUT/RESULTS.md"
    if [ "$DEVICE" = cpu ]; then options+=(--threads 1); fi
    "$PYTHON" benchmarks/run.py --device "$DEVICE" --peers "$PYTHON" --results "$OUT/RESULTS.md" --hold "$WORK/measure" \
        "${options[@]}" "${only[@]}"
}
export -f seeds bench
export PYTHON DEVICE QUICK WORK OUT

train() { # NAME DATA MODEL [OPTIONS]
    local name=$1
    shift
    part "train-$name" 100 "$PYTHON" benchmarks/training.py "$@" --max-time "$MAX_TIME" --device "$DEVICE" \
        --json "$WORK/train-$name.json"
}

part machine 60 "$PYTHON" benchmarks/gpu_report.py --machine "$DEVICE"

# what is not timed runs together, while the bench compiles
if wanted bench; then part bench 260 bash -c bench & building=$!; children="$children $building"; fi
if wanted seeds; then part seeds 160 bash -c seeds & seeding=$!; children="$children $seeding"; fi
if wanted tests; then part tests 150 env LOGLIK_GPU="$DEVICE" "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py; fi
if wanted seeds; then wait $seeding; fi
touch "$WORK/measure"
if wanted bench; then wait $building; fi

if wanted trainings; then
    train diffusion "$DATA" diffusion
    train vae "$DATA" vae
    train glow "$DATA" flow:glow
    train classifier "$DATA" classifier
    train text "$TEXT" autoregressive --set tokenizer=characters
fi
"$PYTHON" benchmarks/gpu_report.py "$WORK" "$OUT"
echo "results: $OUT"
