#!/bin/sh
# Helm post-renderer: manifests on standard input, the same with this directory's patches on standard output.
#     helm upgrade --install inference CHART -n poolside-models -f VALUES --post-renderer ./post-render.sh
# Needs kubectl. It fails, and nothing is installed, when a patch meets no Deployment, meets one without an init
# container `model-downloader`, still has placeholders, or asks for more than a limit that the chart sets.
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

mkdir "$work/in" "$work/plain"
cp "$here"/*.yaml "$work/in"
cat >"$work/in/rendered.yaml"
cp "$work/in/rendered.yaml" "$work/plain"
echo 'resources: [rendered.yaml]' >"$work/plain/kustomization.yaml"

# What kustomize writes is always laid out in the same way: with it and without the patches.
downloaders() {
    grep -Ec "^ +(- )?name: [\"']?model-downloader[\"']?( +#.*)?\$" "$1" || true
}
require_one() {
    [ "$1" != 0 ] || fail "no init container is called model-downloader here" \
        "look at \`helm template\`, and give the patches the name that the chart has"
}
require_one "$(grep -c model-downloader "$work/in/rendered.yaml" || true)"
kubectl kustomize "$work/plain" >"$work/plain.yaml"
require_one "$(downloaders "$work/plain.yaml")"
kubectl kustomize "$work/in" >"$work/patched.yaml"
[ "$(downloaders "$work/plain.yaml")" = "$(downloaders "$work/patched.yaml")" ] ||
    fail "a patched Deployment has no init container model-downloader, and would get one without mounts" \
        "name only Deployments that have one in kustomization.yaml"

# Kustomize says nothing of a patch that meets nobody: every image of a patch has to be in there.
images() {
    sed -n 's/^ *\(- \)\{0,1\}image: *//p' "$@" | tr -d '"' | sort
}
images "$here"/*.yaml >"$work/wanted"
images "$work/patched.yaml" >"$work/found"
[ -z "$(comm -23 "$work/wanted" "$work/found")" ] ||
    fail "a patch in $here meets no Deployment" \
        "look at \`helm template\`, and name the Deployments in kustomization.yaml as the chart does"

# Limits of the chart stay where the patch has none: what is asked for has to fit, or no pod is ever made.
too_much=$(
    awk '
        function amount(text, unit) {
            gsub(/["\047]/, "", text)
            if (text !~ /^[0-9.]+([mkMGTPE]|[KMGTPE]i)?$/) return -1
            unit = text
            sub(/^[0-9.]+/, "", unit)
            sub(/[^0-9.]+$/, "", text)
            return text * factor[unit]
        }
        function compare(name) {
            for (name in asked)
                if (name in limit && amount(limit[name]) >= 0 && amount(asked[name]) > amount(limit[name]))
                    printf "%s%s %s, limit %s", (found++ ? "; " : ""), name, asked[name], limit[name]
            split("", asked)
            split("", limit)
            inside = -1
        }
        BEGIN {
            factor[""] = 1
            factor["m"] = 0.001
            count = split("k M G T P E", units, " ")
            for (power = 1; power <= count; power++) {
                factor[units[power]] = 1000 ^ power
                factor[toupper(units[power]) "i"] = 1024 ^ power
            }
            inside = -1
        }
        {
            match($0, /^ *(- )?/)
            indent = RLENGTH
            line = substr($0, indent + 1)
            if (inside >= 0 && indent <= inside) compare()
            if (line == "resources:") inside = indent
            else if (inside >= 0 && indent == inside + 2) kind = line
            else if (inside >= 0 && indent == inside + 4) {
                split(line, pair, ": ")
                if (kind == "requests:") asked[pair[1]] = pair[2]
                if (kind == "limits:") limit[pair[1]] = pair[2]
            }
        }
        END { compare() }
    ' "$work/patched.yaml"
)
[ -z "$too_much" ] ||
    fail "a container would ask for more than its limit: $too_much" \
        "raise the limit in the values of the chart, or set it in the patch beside the request"
cat "$work/patched.yaml"
