//! `ringfence test-runner` as cargo and nextest call it. Needs /dev/kvm. All of it is quick on every
//! backend, and so in the small set too (`RINGFENCE_TEST_SET=small`).

mod common;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{Dir, Run, need_kvm, ringfence};

/// A program as `cargo test` builds it.
const TEST: &str = "kernel-0123456789abcdef";

fn runner(dir: &Dir, guest: &str, file: &str, args: &str) -> Run {
    let path = dir.file(file, ringfence::guests::find(guest).unwrap().image);
    let words = ["test-runner".to_owned(), path.display().to_string()];
    let package = dir.path().to_owned();
    ringfence(words.into_iter().chain(args.split_whitespace().map(str::to_owned)))
        .with(move |command| _ = command.env("CARGO_MANIFEST_DIR", package))
}

#[test]
fn a_kernel_is_one_test_as_libtest_tells_it() {
    need_kvm();
    let dir = Dir::new();
    let said = runner(&dir, "hello-elf64", TEST, "").expect(0).out();
    assert!(said.contains("running 1 test\ntest kernel ... ok\n"), "{said}");
    assert!(said.contains("test result: ok. 1 passed; 0 failed; 0 ignored"), "{said}");
    let said = runner(&dir, "exit-7", "boot-fedcba9876543210", "").end();
    assert_eq!(said.code(), 101, "a flat image says how it is entered: {said:?}");
    let said = runner(&dir, "death-null-call", TEST, "").expect(101).out();
    assert!(
        said.contains("test kernel ... FAILED") && said.contains("test result: FAILED"),
        "{said}"
    );
}

#[test]
fn nextest_lists_and_runs_one_by_one() {
    need_kvm();
    let dir = Dir::new();
    let list = runner(&dir, "suite", TEST, "--list --format terse").expect(0).silent().out();
    assert_eq!(list.lines().count(), 200, "{list}");
    assert!(list.lines().all(|line| line.ends_with(": test")), "{list}");
    let ignored = runner(&dir, "suite", TEST, "--list --format terse --ignored").expect(0);
    assert_eq!(ignored.silent().out(), "");
    let said = runner(&dir, "suite", TEST, "lock_add --exact --nocapture").expect(0).out();
    assert!(said.contains("running 1 test") && said.contains("199 filtered out"), "{said}");
    // nextest believes the exit code; cargo runs each program with the words for another.
    let other = || runner(&dir, "suite", TEST, "lock_and_key --exact");
    other().expect(0);
    let said = other().with(|command| _ = command.env("NEXTEST", "1")).expect(101);
    said.one_line("has no test lock_and_key");
    fs::write(dir.join("ringfence.toml"), "memory = '16M'\ncmdline = 'how=dies'\n").unwrap();
    let dead = |args| runner(&dir, "suite-liar", TEST, args);
    assert_eq!(dead("--list --format terse").expect(0).out(), "kernel: test\n");
    dead("lock_add --exact").expect(101);
}

#[test]
fn libtests_variables_count_and_output_that_cannot_be_printed_is_no_bug() {
    need_kvm();
    let dir = Dir::new();
    let with = |name: &'static str, value: &'static str| {
        runner(&dir, "suite", TEST, "lock_add").with(move |command| _ = command.env(name, value))
    };
    with("RUST_TEST_THREADS", "0").expect(64).one_line("test threads must be above 0");
    with("RUST_TEST_THREADS", "many").expect(64).one_line("RUST_TEST_THREADS");
    runner(&dir, "suite", TEST, "--test-threads 0").expect(64).one_line("must be above 0");
    let into = |to: OwnedFd| {
        // SAFETY: both are file descriptors, of which the kernel says whether they are open.
        let dup = move || match unsafe { libc::dup2(to.as_raw_fd(), 1) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        // SAFETY: dup2 is async-signal-safe, and `to` is open as long as the closure lives.
        let change = |command: &mut Command| _ = unsafe { command.pre_exec(dup) };
        runner(&dir, "suite", TEST, "").with(change)
    };
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    into(full.into()).expect(71).one_line("cannot write to standard output");
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    into(writer.into()).expect(141).silent();
}

#[test]
fn cargo_test_runs_all_and_cargo_run_is_a_run() {
    need_kvm();
    let dir = Dir::new();
    let said = runner(&dir, "suite", TEST, "").expect(0).out();
    assert!(said.contains("200 passed; 0 failed"), "{said}");
    let said = runner(&dir, "start-info-elf64", "kernel", "one two").expect(0).silent().out();
    assert!(said.contains("cmdline=one two\n"), "{said}");
    // What the package's description says, and that a verdict comes through unchanged.
    fs::write(dir.join("ringfence.toml"), "memory = '64M'\ntimeout = '100s'\n").unwrap();
    let said = runner(&dir, "start-info-elf64", "kernel", "").expect(0).out();
    assert!(said.contains("ram_mib=64"), "{said}");
    runner(&dir, "death-null-call", "kernel", "how=panic").expect(82);
}

#[test]
fn arguments_that_are_not_understood() {
    let dir = Dir::new();
    let ended = runner(&dir, "hello-elf64", TEST, "--frobnicate").expect(64);
    assert!(ended.stderr.contains("--frobnicate"), "{ended:?}");
    fs::write(dir.join("ringfence.toml"), "memroy = '64M'\n").unwrap();
    runner(&dir, "hello-elf64", TEST, "").expect(78).one_line("memroy");
}

#[test]
fn libtest_takes_several_filters() {
    need_kvm();
    let dir = Dir::new();
    let said = runner(&dir, "suite", TEST, "lock_add movsb_copies --exact").expect(0).out();
    assert!(said.contains("running 2 tests") && said.contains("2 passed"), "{said}");
    let said = runner(&dir, "suite", TEST, "lock_a movsb --list --format terse").expect(0).out();
    assert!(said.contains("lock_add: test\n") && said.contains("movsb_copies: test\n"), "{said}");
    let said = runner(&dir, "suite", TEST, "--help").expect(0).silent().out();
    assert!(said.contains("--test-threads"), "{said}");
}

#[test]
fn what_stands_behind_the_kernel_is_the_guests() {
    need_kvm();
    let dir = Dir::new();
    let args = "--timeout 5 -m -h --cmdline x";
    let said = runner(&dir, "start-info-elf64", "kernel", args).expect(0).out();
    assert!(said.contains("cmdline=--timeout 5 -m -h --cmdline x\n"), "{said}");
    let kernel = dir.join("kernel").display().to_string();
    let words = ["test-runner", "--cmdline", "a", "--memory", "64M", &kernel, "b"];
    let said = ringfence(words).expect(0).out();
    assert!(said.contains("cmdline=a b\n") && said.contains("ram_mib=64"), "{said}");
}

#[test]
fn success_may_have_another_code() {
    need_kvm();
    let dir = Dir::new();
    let kernel = dir.file(TEST, ringfence::guests::find("suite-bad").unwrap().image);
    let kernel = kernel.display().to_string();
    for (status, code) in [("85", 0), ("33", 101), ("84", 64)] {
        let cmdline = "test=fails_with_a_code"; // 42
        let words = ["test-runner", "--cmdline", cmdline, "--success-exit-code", status, &kernel];
        ringfence(words).expect(code);
    }
    let words = ["test", "@hello", "--success-exit-code", "33"];
    ringfence(words).expect(1);
}

#[test]
fn an_image_whose_tests_nobody_can_tell_fails_whatever_is_chosen() {
    need_kvm();
    let dir = Dir::new();
    let kernel = dir.file(TEST, ringfence::guests::find("suite-liar").unwrap().image);
    let kernel = kernel.display().to_string();
    let choices = [
        &[][..],
        &["net"],
        &["--skip", "kernel"],
        &["one", "--exact"],
        &["--ignored"],
        &["--bench"],
    ];
    for choice in choices {
        let words = ["test-runner", "--cmdline", "how=twins", &kernel];
        let said = ringfence(words.into_iter().chain(choice.iter().copied())).expect(101).out();
        assert!(said.contains("two tests by the name"), "{choice:?}: {said}");
    }
    let words = ["test-runner", "--cmdline", "how=twins", &kernel, "net", "-q"];
    let said = ringfence(words).expect(101).out();
    assert!(said.contains("two tests by the name") && !said.contains("... FAILED"), "{said}");
    let words = ["test-runner", "--cmdline", "how=twins", &kernel, "--list"];
    ringfence(words).expect(65).one_line("two tests by the name");
}
