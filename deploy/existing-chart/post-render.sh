#!/bin/sh
# Helm post-renderer: manifests on standard input, the same with this directory's patches on standard output.
#     helm upgrade --install inference CHART -n poolside-models -f VALUES --post-renderer ./post-render.sh
# Needs kubectl. It fails, and nothing is installed, when a patch meets no Deployment or still has
# placeholders, and when no init container is called `model-downloader`.
set -eu

fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if grep -Eqs '^[^#]*<[a-z-]+>' "$here"/*.yaml; then
    fail "there are placeholders in $here" "replace what stands in angle brackets"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir "$work/in"
cp "$here"/*.yaml "$work/in"
cat >"$work/in/rendered.yaml"
grep -Eq '^ +(- )?name: "?model-downloader"?$' "$work/in/rendered.yaml" ||
    fail "no init container is called model-downloader here" \
        "look at \`helm template\`, and give the patches the name that the chart has"
kubectl kustomize "$work/in" >"$work/patched.yaml"

# Kustomize says nothing of a patch that meets nobody: every image of a patch has to be in there.
images() {
    sed -n 's/^ *\(- \)\{0,1\}image: *//p' "$@" | tr -d '"' | sort
}
images "$here"/*.yaml >"$work/wanted"
images "$work/patched.yaml" >"$work/found"
[ -z "$(comm -23 "$work/wanted" "$work/found")" ] ||
    fail "a patch in $here meets no Deployment" \
        "look at \`helm template\`, and name the Deployments in kustomization.yaml as the chart does"
cat "$work/patched.yaml"
