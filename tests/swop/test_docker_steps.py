"""Lines of a Dockerfile as a definition file: what a shell makes of it is what Docker would have done."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.swop.docker_steps import CONTEXT, ENVIRONMENT, MOUNT, Base, base_names, translate


def definition(*steps, build_env=()):
    return translate(steps, lambda name: Base("localimage", f"/images/{name}.sif"), build_env)


def sections(text):
    found = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True)) | {"header": found[0]}


class Build:
    """%post and %runscript in a plain shell, with a folder for / and another for the build context."""

    def __init__(self, root):
        self.root, self.mount = root / "root", root / "mount"
        self.root.mkdir()
        (self.mount / CONTEXT).mkdir(parents=True)
        (self.mount / ENVIRONMENT).write_text("")

    def run(self, *steps, build_env=()):
        found = sections(definition(*steps, build_env=build_env).text)
        # a path that is absolute in the image begins with $ROOT here
        post = found["post"].replace(f"{MOUNT}/", f"{self.mount}/").replace("  cd /\n", f"  cd {self.root}\n")
        return self.shell(post)

    def shell(self, text, *words):
        done = subprocess.run(
            ["/bin/sh", "-c", text, "sh", *words],
            env={"PATH": "/usr/bin:/bin", "ROOT": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout if done.returncode == 0 else f"failed: {done.stderr}"


@pytest.fixture
def build(tmp_path):
    return Build(tmp_path)


def test_the_header_names_the_image_of_from():
    text = definition("# a comment", "", "FROM sl-pytorch AS one", "RUN true").text
    assert text.startswith("Bootstrap: localimage\nFrom: /images/sl-pytorch.sif\n\n%post\n")
    assert base_names(["ARG V=2", "FROM tensorflow/tensorflow:${V}.7"]) == ["tensorflow/tensorflow:2.7"]


def test_a_line_goes_on_after_a_backslash_over_comments_and_empty_lines(build):
    assert build.run("FROM x", "RUN echo a \\", "# not this", " ", "  b \\  ", "  'c  d'") == "a b c  d\n"


def test_each_run_has_a_shell_of_its_own_and_the_first_failure_ends_the_build(build):
    assert build.run("FROM x", "RUN cd /tmp; X=1", "RUN echo ${X:-none}") == "none\n"
    assert build.run("FROM x", "RUN false", "RUN echo on").startswith("failed")


def test_commands_reach_the_shell_as_they_are_written(build):
    assert build.run("FROM x", """RUN echo "it's" '{{ VAR }}' {{{x}}} %post \\$HOME 'a"b'""") == (
        "it's {{ VAR }} {{{x}}} %post $HOME a\"b\n"
    )
    assert build.run("FROM x", r'RUN ["printf", "%s|", "a b", "$HOME", "{{ X }}"]') == "a b|$HOME|{{ X }}|"


def test_nothing_in_a_command_is_an_argument_of_the_definition_or_a_section():
    lines = ["RUN echo {{ A }} {{{ B }}}", "ENV A={{C}}", "RUN echo \\", "%setup", "ENV B='{{D}}'"]
    text = definition("FROM x", *lines).text
    assert "{{" not in text
    assert [line for line in text.splitlines() if line.lstrip().startswith("%")] == ["%post", "%environment"]


def test_variables_of_env_and_arg_are_those_of_docker(build):
    steps = ["ARG V=1", "FROM x", "ARG V", "ARG W='a b'", "ENV A=$V B=\"${W}!\" C='$V' D=e\\ f", "ENV L long text $V"]
    told = build.run(*steps, 'RUN echo "$A|$B|$C|$D|$L|$W"')
    assert told == "1|a b!|$V|e f|long text 1|a b\n"
    environment = sections(definition(*steps).text)["environment"]
    assert build.shell(f'{environment}\necho "$A|$B|$C|$D|$L|${{W:-}}"') == "1|a b!|$V|e f|long text 1|\n"


def test_path_of_the_base_is_kept_when_it_is_added_to(build):
    environment = sections(definition("FROM x", "ENV PATH=/opt/x/bin:$PATH", "ENV PATH=${PATH}:/z").text)["environment"]
    assert build.shell(f"{environment}\necho $PATH") == "/opt/x/bin:/usr/bin:/bin:/z\n"


def test_env_counts_more_than_arg(build):
    assert build.run("FROM x", "ENV V=env", "ARG V=arg", "RUN echo $V") == "env\n"


def test_a_proxy_is_there_for_the_build_and_nowhere_in_the_image(build):
    (build.mount / ENVIRONMENT).write_text("export http_proxy=http://u:secret@p\n")
    steps = ["FROM x", "ARG http_proxy", "RUN echo $http_proxy"]
    assert build.run(*steps, build_env=["http_proxy"]) == "http://u:secret@p\n"
    post = sections(definition(*steps, build_env=["http_proxy"]).text)["post"].replace(f"{MOUNT}/", f"{build.mount}/")
    traced = subprocess.run(["/bin/sh", "-exc", post], capture_output=True, text=True, check=True)
    assert "+ /bin/sh -c" in traced.stderr
    assert "secret" not in traced.stderr
    with pytest.raises(ConfigError, match="for the build alone"):
        definition("FROM x", "ENV P=$http_proxy", build_env=["http_proxy"])


def test_copy_puts_files_where_docker_does(build):
    context = build.mount / CONTEXT
    (context / "pkg").mkdir()
    for name in ("a.py", "b.py", "pkg/c.py", "with blank.txt"):
        (context / name).write_text(name)
    told = build.run(
        "FROM x",
        "COPY a.py one/renamed.py",
        "COPY a.py two/",
        "COPY *.py three/",
        "COPY pkg four",
        'COPY ["with blank.txt", "five/"]',
        "COPY . six",
        "ADD /a.py .",
    )
    assert told == ""
    found = {str(path.relative_to(build.root)) for path in build.root.rglob("*") if path.is_file()}
    assert found >= {"one/renamed.py", "two/a.py", "three/a.py", "three/b.py", "four/c.py", "five/with blank.txt"}
    assert found >= {"six/a.py", "six/pkg/c.py", "a.py"}


def test_a_file_that_the_context_lacks_ends_the_build_with_its_name(build):
    assert "the build context has no none.whl" in build.run("FROM x", "COPY none.whl /tmp/")
    assert "the build context has no *.whl" in build.run("FROM x", "COPY *.whl /tmp/")


def test_entrypoint_and_cmd_are_the_runscript(build):
    steps = ["FROM x", 'CMD ["b", "c d"]', 'ENTRYPOINT ["printf", "%s|"]']
    runscript = sections(definition(*steps).text)["runscript"]
    assert build.shell(runscript) == "b|c d|"
    assert build.shell(runscript, "e") == "e|"
    assert build.shell(sections(definition("FROM x", "CMD echo $0 hi").text)["runscript"]) == "/bin/sh hi\n"


def test_a_workdir_is_made_and_kept():
    text = definition("FROM x", "WORKDIR /opt", "WORKDIR my app", 'CMD ["x"]').text
    assert 'mkdir -p "/opt/my app"; cd "/opt/my app"' in text
    assert '%runscript\n  cd "/opt/my app"' in text


def test_labels_are_kept():
    assert "%labels\n  a.b 1 2\n  c d\n" in definition("FROM x", 'LABEL a.b="1 2" c=d').text


def test_what_means_nothing_is_noted():
    notes = definition("FROM x", "EXPOSE 80", "VOLUME /d", "HEALTHCHECK NONE", "USER root").notes
    assert [note.split()[5] for note in notes] == ["EXPOSE", "VOLUME", "HEALTHCHECK"]
    assert notes[0].startswith("line 2 of the Dockerfile: ")


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([], "has no FROM"),
        (["RUN x"], "line 1 of the Dockerfile: RUN: has to come after FROM"),
        (["FROM a", "FROM b"], "several stages"),
        (["FROM --platform=x a"], "options"),
        (["FROM scratch"], "needs one to be built on"),
        (["FROM $X"], "variable without a value"),
        (["FROM ../x"], "not the name of an image"),
        (["FROM x", "", "RUNN y"], "line 3 of the Dockerfile: RUNN: there is no such instruction"),
        (["FROM x", "RUN"], "has nothing after it"),
        (["FROM x", "RUN --mount=type=cache x"], "options"),
        (["FROM x", "RUN <<EOF"], "here-documents"),
        (["FROM x", "COPY --from=y a b"], "options"),
        (["FROM x", "COPY ../a b"], "only files of the build context"),
        (["FROM x", "COPY a b c"], "let it end in a /"),
        (["FROM x", "COPY a /mnt/x"], "take another folder"),
        (["FROM x", "ADD https://x/y z"], "nothing is fetched"),
        (["FROM x", "ADD a.tar.gz z"], "tar -xf"),
        (["FROM x", "USER jane"], "as the user whose job it is"),
        (["FROM x", "ENV A"], "NAME=VALUE|name of a variable|write"),
        (["FROM x", "ENV A=1 B=$A"], "ENV of its own"),
        (["FROM x", "ENV A='x"], "does not end"),
        (["FROM x", "ENV A=${B##x}"], "known are"),
        (["FROM x", "ARG A=$B"], "no ARG"),
        (["FROM x", "LABEL a=$B"], "a label is"),
        (["FROM x", "ONBUILD RUN x"], "later builds"),
        (["FROM x", "SHELL bash"], "takes a list"),
        (["FROM x", "RUN a\nb"], "control character"),
        (["# escape=`", "FROM x"], "backslash"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_line_and_instruction(steps, reason):
    with pytest.raises(ConfigError, match=reason):
        definition(*steps)


words = st.text(max_size=30) | st.text(alphabet="$\\{}'\" =:-ab/*%#[]<", max_size=30)
instructions = st.sampled_from(
    ["FROM", "RUN", "ENV", "ARG", "LABEL", "WORKDIR", "COPY", "ADD", "CMD", "ENTRYPOINT", "SHELL", "USER", "EXPOSE"]
)
steps = st.lists(st.builds("{} {}".format, instructions, words) | words, max_size=6)


@given(steps)
def test_any_lines_are_a_definition_or_an_error_of_ours(lines):
    try:
        text = definition("FROM x", *lines).text
    except SwarmError:
        return
    assert "{{" not in text
    assert set(re.findall(r"^\s*%(\w*)", text, re.MULTILINE)) <= {"post", "environment", "labels", "runscript"}
    assert text.encode()


@given(st.text(alphabet="$\\{}'\" ab%#*", min_size=1, max_size=20).filter(str.strip))
def test_a_value_in_single_quotes_comes_back_from_the_shell(value):
    value = value.replace("'", "")
    environment = sections(definition("FROM x", f"ENV A='{value}'").text)["environment"]
    command = ["/bin/sh", "-c", f'{environment}\nprintf %s "$A"']
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == value
