"""`kvasir completion SHELL`: what a shell needs to complete our words; and the words themselves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from kvasir.cli.main import ALIASES, COMMANDS
from kvasir.cli.parser import OPTIONS, Options, Parser
from kvasir.errors import KvasirError
from kvasir.settings import Settings
from kvasir.store.names import listing

WITH_MODEL = {"run": 1, "show": 1, "stop": 1, "cp": 1, "rm": 99, "push": 1, "list": 1}  # how many of them
BASH = """\
# kvasir completion bash > ~/.local/share/bash-completion/completions/kvasir
_kvasir() {
    local line="${COMP_LINE:0:COMP_POINT}" words=() word found=()
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    word="${words[${#words[@]}-1]}"
    mapfile -t found < <(kvasir completion --words -- "${words[@]:1}" 2>/dev/null)
    COMPREPLY=()
    local each
    for each in "${found[@]}"; do
        [[ "$word" == *:* ]] && each="${each#"${word%:*}:"}"  # a colon ends a word for bash
        COMPREPLY+=("$each")
    done
}
complete -o default -F _kvasir kvasir
"""
ZSH = """\
#compdef kvasir
# kvasir completion zsh > a folder of your $fpath, as _kvasir
_kvasir() {
    local -a found
    found=("${(@f)$(kvasir completion --words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [[ -n "$found" ]] && compadd -a found || _files
}
[[ "$funcstack[1]" == _kvasir ]] && _kvasir "$@" || compdef _kvasir kvasir
"""
FISH = """\
# kvasir completion fish > ~/.config/fish/completions/kvasir.fish
function __kvasir_words
    set -l words (commandline -opc)
    kvasir completion --words -- $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c kvasir -a '(__kvasir_words)'
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command: prints a script, or with --words what may stand for the last of the words."""
    if list(words[:2]) == ["--words", "--"]:
        print("\n".join(complete(list(words[2:]))))
        return 0
    it = Parser("completion", "A script that lets a shell complete kvasir's commands, options and models.")
    it.add_argument("shell", choices=tuple(SHELLS), help="its output goes where its first lines say")
    print(SHELLS[it.read(words).shell], end="")
    return 0


def complete(words: Sequence[str]) -> list[str]:
    """What may stand for the last of `words`, the words behind `kvasir`; nothing where files may."""
    *before, last = words or [""]
    if not before:
        return _begin(last, [*COMMANDS, *ALIASES, "help"])
    name = ALIASES.get(before[0], before[0])
    if name == "help":
        return _begin(last, COMMANDS) if len(before) == 1 else []
    if name == "completion" and not last.startswith("-"):
        return _begin(last, SHELLS)
    if name not in COMMANDS:
        return []
    if last.startswith("-"):
        return _begin(last, options_of(name))
    n_words = sum(not word.startswith("-") for word in before[1:])
    if n_words < WITH_MODEL.get(name, 0) and not last.startswith((".", "/", "~")):
        try:
            return _begin(last, [file.name.removesuffix(":latest") for file in listing()])
        except KvasirError:
            return []
    return []


def options_of(name: str) -> list[str]:
    """The options of a command, as its own parser has them."""
    try:
        import_module(f"kvasir.cli.{name}").command([OPTIONS], Settings())
    except Options as found:
        return found.names
    except KvasirError:
        pass
    return []


def _begin(start: str, words: Sequence[str] | dict[str, str]) -> list[str]:
    return [word for word in words if word.startswith(start)]
