#!/usr/bin/env bash
# Sets up .venv and does the main job once: trains CartPole-v1, shrinks the policy, proves it, and prints the table.
# Needs nothing but Python 3.11, 3.12 or 3.13 with venv. A second run trains again, beside the first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
set_up run

number=1
while [ -e "runs/quickstart-$number" ] || [ -e "bundles/quickstart-$number" ]; do number=$((number + 1)); done
run="runs/quickstart-$number"
bundle="bundles/quickstart-$number"

.venv/bin/rlplatform train CartPole-v1 --out "$run"
.venv/bin/rlplatform compress "$run" --out "$bundle"
echo "TensorBoard: .venv/bin/tensorboard --logdir $run"
