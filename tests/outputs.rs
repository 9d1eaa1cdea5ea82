//! Where the files of a run go: through links, onto devices and FIFOs, and nowhere.
//!
//! All of them are quick enough for RINGFENCE_TEST_SET=small, so they do not look at it.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use common::{Dir, need_kvm, program, report, ringfence, script};

/// A guest that dies, is sampled and counted.
const DIES: [&str; 3] = ["run", "@death-fault-in-handler", "--autopsy=fast"];
const DIED: i32 = 80;

/// Each option that writes a file at the end, and how that file begins.
const OPTIONS: [(&str, &[u8]); 3] =
    [("--report", b"{\n"), ("--profile", b"vcpu0;"), ("--core", b"\x7FELF")];

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().is_symlink()
}

/// A guest that runs for long enough to be sampled, then is ended.
fn guest(option: &str) -> Vec<&'static str> {
    match option {
        "--profile" => vec!["run", "@spin", "-q", "--timeout", "1s"],
        _ => DIES.to_vec(),
    }
}

fn code(option: &str) -> i32 {
    if option == "--profile" { 124 } else { DIED }
}

#[test]
fn links_stay_and_their_targets_are_replaced() {
    need_kvm();
    for (option, begins) in OPTIONS {
        let dir = Dir::new();
        fs::create_dir(dir.join("there")).unwrap();
        let target = dir.file("there/target", "before");
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("there/target", dir.join("link")).unwrap();
        symlink("there/new", dir.join("dangling")).unwrap();
        for (link, target) in [("link", "there/target"), ("dangling", "there/new")] {
            let run = ringfence(guest(option)).arg(option).arg(dir.join(link));
            run.end().expect(code(option));
            let bytes = fs::read(dir.join(target)).unwrap();
            assert!(is_link(&dir.join(link)) && bytes.starts_with(begins), "{option} {link}");
        }
        let mode = fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{option}");
        assert_eq!(fs::read_dir(dir.join("there")).unwrap().count(), 2, "{option}");
        symlink("circle", dir.join("circle")).unwrap();
        let run = ringfence(guest(option)).arg(option).arg(dir.join("circle"));
        run.expect(71).one_line("circle");
    }
}

/// By links of its own: what is tried with `/dev/stdout` would be lost where it fails.
#[test]
fn standard_output_in_a_file_keeps_what_the_guest_wrote() {
    need_kvm();
    let dir = Dir::new();
    symlink("/proc/self/fd/1", dir.join("stdout")).unwrap();
    symlink("/proc/self/fd/3", dir.join("three")).unwrap();
    let path = dir.path().display();
    script(&format!("$R run @hello --report {path}/stdout > {path}/file")).expect(0).silent();
    let text = fs::read_to_string(dir.join("file")).unwrap();
    let (said, record) = text.split_at(text.find("{\n").expect("a report"));
    assert!(!said.is_empty(), "{text}");
    assert_eq!(report(record.as_bytes())["serial"]["tail"], said);
    script(&format!("$R run @hello --report {path}/three 3> {path}/file")).expect(0).silent();
    report(&fs::read(dir.join("file")).unwrap());
    assert!(is_link(&dir.join("stdout")) && is_link(&dir.join("three")));
    // A core in the midst of it would be none.
    let refused = script(&format!("$R {} --core {path}/stdout > {path}/file", DIES.join(" ")));
    refused.expect(71).one_line("regular file");
}

#[test]
fn fifos_and_devices_are_written_to_and_refused_for_a_core() {
    need_kvm();
    let dir = Dir::new();
    let fifo = dir.join("fifo");
    program("mkfifo").arg(&fifo).expect(0);
    symlink("/dev/full", dir.join("full")).unwrap();
    let path = dir.path().display();
    let read = format!("cat {path}/fifo & $R run @hello --serial null --report {path}/fifo; wait");
    report(&script(&read).expect(0).stdout);
    run_to(&dir, "--report", "full").expect(71).one_line("cannot write the report");
    for name in ["fifo", "full"] {
        let refused = run_to(&dir, "--core", name).expect(71);
        let refused = refused.one_line("a regular file is needed");
        assert!(refused.stdout.is_empty(), "the guest has run: {refused:?}");
    }
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    assert!(is_link(&dir.join("full")));
    assert_eq!(dir.names(), ["fifo", "full"]);
}

fn run_to(dir: &Dir, option: &str, name: &str) -> common::Ended {
    let guest = if option == "--core" { DIES.to_vec() } else { vec!["run", "@hello", "-q"] };
    ringfence(guest).arg(option).arg(dir.join(name)).end()
}

#[test]
fn directories_that_are_not_there_are_refused_before_the_guest_runs() {
    for option in ["--report", "--profile", "--core"] {
        let refused = ringfence(["run", "@hello", option, "/nonexistent/file"]).expect(71);
        let refused = refused.one_line("/nonexistent/file");
        assert!(refused.stdout.is_empty(), "the guest has run: {refused:?}");
    }
}

#[test]
fn an_output_that_is_another_file_of_the_run_is_refused_before_it_is_opened() {
    let dir = Dir::new();
    dir.file("image", "\x7FELF");
    symlink("image", dir.join("link")).unwrap();
    fs::hard_link(dir.join("image"), dir.join("hard")).unwrap();
    symlink("new", dir.join("dangling")).unwrap();
    dir.file("machine.toml", "core = 'x'\n");
    let path = dir.path().display().to_string();
    for (args, words) in [
        ("image --core link", "--core link is the image too"),
        ("image --core hard --trace t", "is the image too"),
        ("image --trace image", "is the image too"),
        ("image --memory 4K --report image", "is the image too"),
        ("@hello --initrd image --serial file:image", "is the initial RAM disk too"),
        ("@hello --module image,a --profile image", "is a module too"),
        ("@hello --symbols image --core image", "is a file of symbols too"),
        ("--config machine.toml --report machine.toml", "is the machine description too"),
        ("@hello --config machine.toml --report x", "what --report writes too"),
        ("@hello --core x --report ./x", "--core x is what --report writes too"),
        ("@hello --trace new --report dangling", "what --trace writes too"),
        ("@hello --coverage x --control unix:x", "what --coverage writes too"),
    ] {
        let refused = script(&format!("cd {path} && $R run {args}")).expect(64).one_line(words);
        assert!(refused.stdout.is_empty(), "the guest has run: {refused:?}");
        assert_eq!(fs::read(dir.join("image")).unwrap(), b"\x7FELF", "{args}");
        assert_eq!(dir.names(), ["dangling", "hard", "image", "link", "machine.toml"], "{args}");
    }
}

#[test]
fn several_outputs_may_share_a_stream() {
    need_kvm();
    let both = "$R run @hello -q --serial null --report /dev/null --trace /dev/null";
    script(both).expect(0).silent();
    script("$R run @hello --serial null --report - --trace - | grep -q verdict").expect(0);
}

#[test]
fn symbols_are_looked_at_before_the_guest_runs() {
    let dir = Dir::new();
    program("mkfifo").arg(dir.join("fifo")).expect(0);
    dir.file("text", "no ELF");
    dir.file("short", "\x7FE");
    for (name, word) in [
        ("fifo", "a FIFO"),
        ("/dev/zero", "a device"),
        ("text", "no ELF file"),
        ("short", "no ELF file"),
        ("nowhere", "No such file"),
    ] {
        let run = ringfence(["run", "@hello", "--stats", "--symbols"]).arg(dir.join(name));
        let refused = run.expect(66).one_line(word);
        assert!(refused.stdout.is_empty(), "the guest has run: {refused:?}");
    }
}

#[test]
fn a_core_is_no_stream() {
    let refused = ringfence(["run", "@hello", "--core", "-"]).expect(71);
    refused.one_line("standard output; a regular file is needed");
}

/// A limit for files that the guest's memory just keeps stands for the full disk.
#[test]
fn a_core_that_cannot_be_written_costs_the_core_alone() {
    need_kvm();
    let dir = Dir::new();
    let (run, path) = (DIES.join(" "), dir.path().display());
    let ended = script(&format!("ulimit -f 262144; $R {run} --core {path}/core --report {path}/r"));
    let told = ended.expect(71).stderr;
    assert!(told.contains("\n  registers\n"), "the page: {told}");
    let last = told.lines().last().unwrap();
    assert!(last.starts_with("ringfence: cannot write the core"), "{told}");
    let record = report(&fs::read(dir.join("r")).unwrap());
    assert_eq!(record["verdict"], "triple-fault");
    assert!(told.contains(record["autopsy"]["summary"].as_str().unwrap()), "{told}");
    assert_eq!(dir.names(), ["r"]);
}
