"""Containerfiles: what a node builds is understood whole, and whatever reaches outside is refused (R-MF12)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.containerfile import MAX_INSTRUCTIONS, MAX_STAGES, Containerfile, ContainerfileRefused, parse
from apps.containerfile_text import MAX_BYTES

BASE = f"sha256:{'a' * 64}"
OTHER = f"sha256:{'b' * 64}"
CONTEXT = ("Containerfile", "busybox", "www/index.html", "www/style.css", "with space")


def read(text: str | bytes, *, context: tuple[str, ...] = CONTEXT, mounts: tuple[str, ...] = ()) -> Containerfile:
    raw = text.encode() if isinstance(text, str) else text
    return parse(raw, context=context, bases=(BASE,), mounts=mounts, where="app: containers.web.build")


def faults(text: str | bytes, **more: tuple[str, ...]) -> list[tuple[int, str]]:
    with pytest.raises(ContainerfileRefused) as caught:
        read(text, **more)
    assert all(fault.remedy for fault in caught.value.faults)
    return [(fault.line, fault.what) for fault in caught.value.faults]


def fault(line: str, *, after: str = "FROM scratch AS one\n", **more: tuple[str, ...]) -> str:
    ((at, what),) = faults(after + line, **more)
    assert at == after.count("\n") + 1
    return what


def test_a_whole_file_is_written_again_as_it_was_understood() -> None:
    text = """
# a page and its server
from scratch as files
COPY busybox /bin/busybox
COPY --chown=1000:1000 --chmod=755 ["with space", "www/", "/srv/"]
RUN ["/bin/busybox", "mkdir", "-p", "/www"]
RUN /bin/busybox echo one && \\
    # of two
    /bin/busybox echo "$TWO" > /www/two

FROM docker.io/library/base:3@BASE
COPY --from=files /www ./www
ENV PATH=/opt/bin:$PATH NAME='one two' EMPTY=
LABEL org.example.title="A page"
WORKDIR /www
USER 1000:1000
EXPOSE 8080 53/udp
VOLUME ["/data/"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/bin/busybox", "httpd"]
CMD -f -p 8080
""".replace("BASE", BASE)
    found = read(text, mounts=("/data",))
    assert found.bases == (BASE,)
    assert found.from_scratch
    assert found.text({BASE: "localhost/archy/app/web@sha256:1"}, scratch="localhost/archy/app/web:empty") == "\n".join(
        (
            "FROM localhost/archy/app/web:empty AS files",
            'COPY ["busybox", "/bin/busybox"]',
            'COPY --chown=1000:1000 --chmod=755 ["with space", "www/", "/srv/"]',
            'RUN ["/bin/busybox", "mkdir", "-p", "/www"]',
            'RUN /bin/busybox echo one &&     /bin/busybox echo "$TWO" > /www/two',
            "FROM localhost/archy/app/web@sha256:1 AS stage-1",
            'COPY --from=files ["/www", "./www"]',
            'ENV PATH="/opt/bin:$PATH" NAME="one two" EMPTY=""',
            'LABEL org.example.title="A page"',
            "WORKDIR /www",
            "USER 1000:1000",
            "EXPOSE 8080 53/udp",
            'VOLUME ["/data/"]',
            "STOPSIGNAL SIGTERM",
            'ENTRYPOINT ["/bin/busybox", "httpd"]',
            "CMD -f -p 8080",
            "",
        )
    )


def test_a_later_stage_begins_with_an_earlier_one() -> None:
    found = read("FROM scratch AS one\nCOPY . /\nFROM one\nUSER 1\n")
    assert found.text({}) == 'FROM scratch AS one\nCOPY [".", "/"]\nFROM one AS stage-1\nUSER 1\n'


@pytest.mark.parametrize(
    "start",
    [
        "alpine",
        "alpine:3",
        "docker.io/library/alpine:latest",
        f"alpine@{BASE}0",
        "alpine@sha256:abc",
        "https://example.com/x.tar",
        "oci:/etc",
        "docker-archive:/home/op/.ssh",
        "dir:/",
        "later",
        "One",
        "SCRATCH",
    ],
)
def test_a_base_without_a_digest_would_be_pulled_and_is_refused(start: str) -> None:
    ((line, what),) = faults(f"FROM scratch AS one\nFROM {start}\nFROM scratch AS later")
    assert line == 2
    assert "pinned by digest" in what


def test_a_base_that_the_manifest_does_not_list_is_refused() -> None:
    assert "not among the manifest's" in fault(f"FROM base@{OTHER}")


def test_a_variable_in_from_chooses_the_base_later_and_is_refused() -> None:
    assert "variable" in fault("FROM $BASE")
    assert "variable" in fault(f"FROM ${{BASE:-base}}@{BASE}")


@pytest.mark.parametrize("line", [f"FROM --platform=linux/arm64 base@{BASE}", "FROM scratch one", "FROM scratch AS 0"])
def test_from_says_one_thing_only(line: str) -> None:
    fault(line)


@pytest.mark.parametrize("name", ["one", "scratch", "stage-0", "a/b", "Up", "$x"])
def test_a_stage_name_that_could_mean_something_else_is_refused(name: str) -> None:
    fault(f"FROM scratch AS {name}")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ADD https://example.com/x /x", "ADD is not allowed"),
        ("ADD busybox /x", "ADD is not allowed"),
        ("add busybox /x", "ADD is not allowed"),
        ("ADD\thttps://example.com/x /x", "ADD is not allowed"),
        ("ONBUILD ADD https://example.com/x /x", "ONBUILD is not allowed"),
        ('SHELL ["/evil"]', "SHELL is not allowed"),
        ("ARG http_proxy=http://10.0.0.1", "ARG is not allowed"),
        ("HEALTHCHECK CMD true", "HEALTHCHECK is not allowed"),
        ("INCLUDE other", "not an instruction"),
        ("RUNX true", "not an instruction"),
    ],
)
def test_instructions_that_fetch_run_later_or_are_unknown_are_refused(line: str, says: str) -> None:
    assert says in fault(line)


@pytest.mark.parametrize(
    "source",
    ["alpine", "docker.io/library/alpine", f"base@{BASE}", "0", "5", "$one", "", "later", "oci:/x", "https://e.org/x"],
)
def test_copy_from_an_image_would_pull_it_and_is_refused(source: str) -> None:
    assert "names no earlier stage" in fault(f"COPY --from={source} /etc/passwd /passwd")


def test_a_stage_does_not_copy_from_itself() -> None:
    assert "no earlier stage" in fault("COPY --from=one /a /b")


@pytest.mark.parametrize(
    "flag",
    [
        "--mount=type=secret,id=x",
        "--mount=type=ssh",
        "--mount=type=bind,from=alpine,target=/x",
        "--mount=type=cache,id=shared,target=/x",
        "--network=host",
        "--security=insecure",
        "--privileged",
        "--",
    ],
)
def test_run_with_a_network_a_secret_a_mount_or_a_privilege_is_refused(flag: str) -> None:
    assert "RUN with" in fault(f"RUN {flag} true")
    assert "RUN with" in fault(f"RUN\t{flag} true")
    assert "RUN with" in fault(f"RUN \\\n {flag} true")


@pytest.mark.parametrize(
    "line",
    ["RUN <<EOF", "RUN cat <<-'EOF' > /x", "COPY <<EOF /x", 'RUN ["/bin/sh", "-c", "cat <<EOF"]', "RUN 3<<EOF true"],
)
def test_heredocs_are_read_differently_by_every_parser_and_refused(line: str) -> None:
    assert "<<" in fault(line)


@pytest.mark.parametrize(
    "line", ["# syntax=docker/dockerfile:1", "#escape=`", "  # Syntax = evil.example/frontend", "# check=skip=all"]
)
def test_a_directive_that_changes_the_parser_is_refused_wherever_it_stands(line: str) -> None:
    assert faults(f"{line}\nFROM scratch") == [(1, "a parser directive")]
    assert faults(f"FROM scratch\n{line}\nUSER 1") == [(2, "a parser directive")]


@pytest.mark.parametrize(
    "source",
    [
        "../secret",
        "www/../../secret",
        "/../x",
        "https://example.com/x",
        "git@example.com:x/y.git",
        "http://10.0.0.1/",
        "nothing",
        "www/*",
        "bus?box",
        "$HOME",
        "~/.ssh",
        "-",
        "www/index",
        '"busybox"',
    ],
)
def test_copy_reads_nothing_outside_the_signed_context(source: str) -> None:
    fault(f"COPY {source} /x/")
    fault(f"COPY {json.dumps([source, '/x/'])}")


@pytest.mark.parametrize("source", ["busybox", "/busybox", "./www", "www/", ".", "/", "www//index.html"])
def test_files_and_folders_of_the_context_are_copied(source: str) -> None:
    assert read(f"FROM scratch\nCOPY {source} /x/").stages[0].lines == (f"COPY {json.dumps([source, '/x/'])}",)


@pytest.mark.parametrize(
    "line",
    [
        "COPY busybox",
        "COPY --link busybox /x",
        "COPY --parents busybox /x",
        "COPY --chmod=u+s busybox /x",
        "COPY --chmod=4755 busybox /x",
        "COPY --chown=$U busybox /x",
        "COPY --chmod=755 --chmod=777 busybox /x",
        "COPY busybox www /x",
        "COPY busybox ../../x",
        'COPY ["busybox", 1]',
        'COPY ["busybox", "/x"',
    ],
)
def test_copy_takes_plain_paths_an_owner_and_a_mode(line: str) -> None:
    fault(line)


def test_a_file_that_takes_files_out_of_the_context_is_refused() -> None:
    ((line, what),) = faults("FROM scratch", context=(*CONTEXT, ".dockerignore"))
    assert (line, what) == (0, "the context has a .dockerignore")


@pytest.mark.parametrize("name", ["archy.app", "archy.spec", "io.containers.autoupdate", "io.podman.annotations.x"])
def test_a_label_that_tells_the_node_or_podman_what_to_do_is_refused(name: str) -> None:
    # Containers inherit an image's labels: an auto-update by label would pull what nobody signed
    assert "not an image's to set" in fault(f'LABEL fine=1 {name}="x"')


@pytest.mark.parametrize(
    "line",
    [
        "ENV a b",
        "ENV a",
        "ENV a=`id`",
        'ENV a="b',
        'ENV a="b"c',
        "ENV a.b=c",
        "ENV =c",
        "LABEL x=$y",
        "WORKDIR relative",
        "WORKDIR /a/../b",
        "WORKDIR $HOME",
        "WORKDIR /a b",
        "USER $UID",
        "USER a b",
        "EXPOSE $PORT",
        "EXPOSE 80-90",
        "STOPSIGNAL kill",
        "STOPSIGNAL SIGTERM SIGKILL",
        'CMD ["a", 1]',
        "ENTRYPOINT ['/bin/sh']",
        'RUN ["a" "b"]',
        'RUN ["a\\u0000b"]',
        "RUN",
        "USER 1 \\",
    ],
)
def test_what_is_not_understood_is_refused(line: str) -> None:
    fault(line)


@pytest.mark.parametrize("line", ["VOLUME /var/lib", "VOLUME /data /other", 'VOLUME ["/other"]', "VOLUME data"])
def test_a_volume_that_nothing_maps_would_lose_its_data_and_is_refused(line: str) -> None:  # R-MF10
    fault(line, mounts=("/data",))


def test_a_mapped_volume_is_fine() -> None:  # R-MF10
    assert read("FROM scratch\nVOLUME /data/ /more", mounts=("/data", "/more/"))


@pytest.mark.parametrize("raw", [b"FROM scratch\r\nUSER 1", b"FROM scratch\n\xff", b"FROM scratch\nRUN a\x00b", b""])
def test_what_is_no_plain_text_is_refused(raw: bytes) -> None:
    faults(raw)


def test_what_would_be_read_twice_or_not_at_all_is_refused() -> None:
    assert faults("FROM scratch\nRUN true \\ \n && id")[0] == (2, "spaces after the backslash")
    assert faults("FROM scratch\nRUN true \\\n\nUSER 1")[0] == (3, "an empty line inside an instruction")
    assert faults("USER 1\nFROM scratch") == [(1, "USER before the first FROM")]


def test_sizes_are_bounded() -> None:
    assert faults(b"#" * (MAX_BYTES + 1)) == [(0, f"more than {MAX_BYTES} bytes")]
    assert faults("FROM scratch\n" + "USER 1\n" * MAX_INSTRUCTIONS)[0][1].startswith("more than")
    assert faults("FROM scratch\n" * (MAX_STAGES + 1))[0] == (MAX_STAGES + 1, f"more than {MAX_STAGES} stages")
    assert len(faults("FROM scratch\n" + "ADD x y\n" * 200)) == 50


def test_all_faults_are_told_at_once_with_line_and_remedy() -> None:
    with pytest.raises(ContainerfileRefused) as caught:
        read("FROM alpine\nADD http://x /\n\nRUN --network=host true\nCOPY busybox /\n")
    assert str(caught.value).splitlines() == [
        "app: containers.web.build: the Containerfile can not be built here:",
        "  line 1: not a base pinned by digest: 'alpine' (write name@sha256:..., an earlier stage, or scratch)",
        "  line 2: ADD is not allowed (write COPY: ADD fetches from addresses and unpacks archives)",
        "  line 4: RUN with '--network' (remove it: a build has no network, secrets, mounts or privileges)",
    ]


PIECES = (
    *("FROM", "scratch", "AS", "one", "COPY", "--from=one", "--from=x", "busybox", "/x", "RUN", "--mount=type=ssh"),
    *("true", "ADD", "http://x", "ENV", "a=b", 'a="$b"', "#", "<<EOF", '["a"]', "USER", "1", f"b@{BASE}"),
    *("\\\n", "\n", "\t"),
)


def _judged(text: str) -> Containerfile | None:
    try:
        return read(text)
    except ContainerfileRefused:
        return None


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join) | st.text(max_size=200))
def test_whatever_comes_is_refused_or_understood_and_what_is_understood_stays_itself(text: str) -> None:
    found = _judged(text)
    if found is None:
        return
    written = found.text({BASE: f"b@{BASE}"})
    again = read(written.replace("AS stage-", "AS again-").replace("FROM stage-", "FROM again-"))
    assert [stage.lines for stage in again.stages] == [stage.lines for stage in found.stages]
    for line in written.splitlines():
        keyword, _, rest = line.partition(" ")
        assert keyword in ("FROM", "COPY", "RUN", "ENV", "USER", "LABEL", "WORKDIR", "EXPOSE", "CMD", "ENTRYPOINT")
        assert not (keyword == "RUN" and rest.startswith("--"))
        assert "\\" not in line[-1:]


@given(st.lists(st.sampled_from(["COPY busybox /x", "RUN true", "ENV a=b", "USER 1"]), max_size=5), st.integers(0, 4))
def test_one_bad_line_spoils_the_whole_file_wherever_it_stands(lines: list[str], at: int) -> None:
    text = "\n".join(("FROM scratch", *lines[:at], "ADD http://x /x", *lines[at:]))
    assert [line for line, _ in faults(text)] == [2 + min(at, len(lines))]
