//! Input that is not what it should be: each is one line that says what to do, the right exit
//! code, and nothing half-written. Those that come as far as KVM need /dev/kvm.

mod common;
mod images;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Dir, Ended, NOBODY, Run, is_one_line, is_root, need_kvm, ringfence, run, script};
use images::Segment;
use ringfence::config::Config;
use ringfence::guests::{GUESTS, Guest};
use ringfence::kvm::Kvm;
use ringfence::verdict::Refusal;
use ringfence::x86::Mode;

fn image(path: &Path) -> Run {
    ringfence(["run", "--timeout", "100s"]).arg(path)
}

#[test]
fn files_that_are_no_image() {
    let dir = Dir::new();
    let fifo = dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (path, code, said) in [
        (dir.file("empty", ""), 65, "it is empty"),
        (dir.file("byte", "x"), 65, "not understood"),
        (dir.file("text", "#!/bin/sh\necho hello\n"), 65, "not understood"),
        (dir.file("no.sector", [0; 512]), 65, "not understood"),
        (dir.path().to_owned(), 66, "it is a directory"),
        (fifo, 66, "it is a FIFO"),
        ("/dev/zero".into(), 66, "a device"),
        (dir.join("missing"), 66, "No such file"),
        (dir.file("file", "").join("below"), 66, "Not a directory"),
        ("@no-such-guest".into(), 66, "ringfence guests"),
    ] {
        let ended = image(&path).expect(code).one_line(said);
        assert!(ended.took < Duration::from_secs(20), "{path:?}: {ended:?}");
        let dry = image(&path).arg("--dry-run").expect(code).one_line(said);
        assert!(dry.stdout.is_empty());
        for option in ["--module", "--initrd"] {
            if code == 66 {
                let beside = run("run @hello-multiboot --timeout 100s").arg(option).arg(&path);
                beside.expect(66).one_line(said);
            }
        }
    }
}

/// Another user where there is one to become, else this one without the permission.
fn unprivileged(dir: &Dir, path: &Path, args: &[&str]) -> Ended {
    fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    let binary = dir.binary();
    ringfence(args)
        .with(|command| {
            let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            *command = Command::new(binary);
            command.args(args);
            if is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
        })
        .end()
}

#[test]
fn files_without_permission() {
    let dir = Dir::new();
    let path = dir.file("secret", ringfence::guests::find("hello-real").unwrap().image);
    let name = path.to_str().unwrap();
    unprivileged(&dir, &path, &["run", name]).expect(66).one_line("Permission denied");
    let ended = unprivileged(&dir, &path, &["run", "@hello", "--kvm", name]);
    ended.expect(77).one_line("usermod -aG kvm");
    let ended = unprivileged(&dir, &path, &["run", "@hello", "--kvm", name, "--if-no-kvm=skip"]);
    ended.expect(0).one_line("skipped: ");
}

#[test]
fn sizes_that_do_not_fit() {
    let dir = Dir::new();
    let huge = dir.sparse("huge", 1 << 40);
    let ended = image(&huge).expect(65).one_line("see --memory");
    assert!(ended.took < Duration::from_secs(20), "{ended:?}");
    // With memory for it, the host is what it does not fit.
    image(&huge).arg("--memory=2048G").expect(71);
    let large = dir.sparse("large", (1 << 20) + 1);
    let flat = |memory| image(&large).arg("--entry=long").arg("--boot=flat").arg(memory);
    flat("--memory=1M").expect(65).one_line("see --memory");
    flat("--memory=2M").expect(65).one_line("memory");
    let module = dir.sparse("module", 7 << 20);
    let with =
        |memory: &str| run("run @hello-multiboot --dry-run --module").arg(&module).arg(memory);
    with("--memory=16M").expect(0);
    with("--memory=8M").expect(65).one_line("module");
    with("--memory=4M").expect(65).one_line("see --memory");
    let initrd = run("run @hello-linux --memory 8M --initrd").arg(&module);
    initrd.expect(65).one_line("init");
}

#[test]
fn segments_where_there_is_no_memory() {
    let dir = Dir::new();
    let load =
        |at: u64, len| images::elf64(images::ET_EXEC, at, &[Segment::load(at, at, b"\xF4", len)]);
    for (name, bytes) in [
        ("over the hole", load(0xBFFF_F000, 0x2000)),
        ("in the hole", load(0xE000_0000, 0x1000)),
        ("beyond RAM", load(1 << 40, 0x1000)),
        ("at the end of the world", load(u64::MAX - 0xFFF, 0x1000)),
        ("longer than the world", load(0x10_0000, u64::MAX)),
    ] {
        let path = dir.file(name, bytes);
        let ended = image(&path).arg("--memory=4G").expect(65);
        assert!(is_one_line(&ended.stderr), "{name}: {ended:?}");
    }
}

#[test]
fn machines_that_no_host_has() {
    need_kvm();
    for (line, code, said) in [
        ("run @hello --memory 1048576G", 71, "--memory"),
        ("run @hello --memory 17179869183G", 71, "--memory"),
        ("run @hello --memory 4K", 78, "at least 1M"),
        ("run @hello --memory 1025K", 78, "whole pages"),
        ("run @hello --cpus 0", 78, "1 to 4096"),
        ("run @hello --cpus 5000", 78, "1 to 4096"),
        ("run @hello --kvm /dev/null", 77, "/dev/null"),
        ("run @hello --kvm /dev/zero", 77, "/dev/zero"),
        ("run @hello --kvm /", 77, "no usable KVM"),
        ("run @hello --kvm /nonexistent", 77, "no such device"),
        ("run @hello --load-address 0xFFFFFFFFFFFFFFFF", 65, ""),
    ] {
        let ended = run(line).expect(code).one_line(said);
        assert!(ended.took < Duration::from_secs(20), "{line}: {ended:?}");
    }
    let kvm = Kvm::open(Path::new("/dev/kvm")).unwrap();
    let most = (1..=4096).rev().find(|cpus| kvm.check_cpus(*cpus).is_ok()).unwrap();
    let (code, said) = if most < 4096 { (77, "--cpus") } else { (78, "4096") };
    run(&format!("run @hello --cpus {}", most + 1)).expect(code).one_line(said);
}

#[test]
fn no_memory_left() {
    need_kvm();
    // KiB of address space: enough for the program and never for its guest. (With hardly
    // anything it is the loader, or the first allocation of all, that fails.)
    for limit in [120_000, 60_000, 30_000] {
        let ended = script(&format!("ulimit -v {limit}; exec $R run @hello")).expect(71);
        ended.one_line("ulimit -v");
    }
    let files = script("ulimit -n 5; exec $R run @hello --if-no-kvm=skip").expect(71);
    files.one_line("ulimit -n");
}

#[test]
fn reports_and_output_leave_nothing_behind() {
    need_kvm();
    let dir = Dir::new();
    let report = dir.join("report");
    let full = format!("run @hello --serial file:/dev/full --report {}", report.display());
    run(&full).expect(71).one_line("/dev/full");
    assert_eq!(dir.names(), ["report"]);
    common::report(&fs::read(&report).unwrap());
    // A directory cannot be replaced by a report; what was to replace it goes.
    fs::create_dir(dir.join("taken")).unwrap();
    run("run @hello --report").arg(dir.join("taken")).expect(71).one_line("cannot write");
    let limited =
        format!("ulimit -f 0; trap '' XFSZ; $R run @hello --report {0}/cut", dir.path().display());
    script(&limited).expect(71);
    assert_eq!(dir.names(), ["report", "taken"]);
}

/// A guest may end as it likes, or its image be refused; the rest is our own failure.
fn is_honest(ended: &Ended) -> bool {
    let one_line = is_one_line(&ended.stderr);
    match ended.code() {
        0..=63 => ended.stderr.is_empty(),
        64 | 65 | 80..=86 | 124 => one_line,
        _ => false,
    }
}

/// One row of the table for each image.
fn distinct() -> Vec<&'static Guest> {
    let rows: BTreeMap<_, _> = GUESTS.iter().rev().map(|guest| (guest.image, guest)).collect();
    rows.into_values().collect()
}

/// The machine that the row's arguments describe, with another image. Its time limit is the
/// test's own; its processor stays the usual one, for a KVM that lacks a part of another says so.
fn arguments(guest: &Guest) -> Vec<&'static str> {
    let mut args = guest.args.to_vec();
    for option in ["--timeout", "--cpu"] {
        if let Some(at) = args.iter().position(|arg| *arg == option) {
            args.drain(at..at + 2);
        }
    }
    args
}

#[track_caller]
fn runs_honestly(dir: &Dir, guest: &Guest, bytes: &[u8], what: &str) {
    let path = dir.file("image", bytes);
    let mut run = ringfence(["run", "--autopsy=off", "--timeout", "300ms"]).arg(&path);
    for arg in arguments(guest) {
        run = run.arg(arg);
    }
    let ended = run.end();
    assert!(is_honest(&ended), "{} {what}: {ended:?}", guest.name);
}

/// The same without a process and without KVM: the machine is planned, or refused for its
/// image's sake.
#[track_caller]
fn plans_honestly(dir: &Dir, guest: &Guest, bytes: &[u8], what: &str) {
    let mut config = Config::new(dir.file("image", bytes));
    config.memory = 16 << 20;
    let entry = arguments(guest);
    let entry = entry.iter().skip_while(|arg| **arg != "--entry").nth(1);
    config.entry = match entry.copied() {
        Some("real") => Some(Mode::Real),
        Some("protected") => Some(Mode::Protected),
        Some("long") => Some(Mode::Long),
        _ => None,
    };
    if let Err(e) = ringfence::machine::plan(&config) {
        let refusal = e.refusal();
        let right = matches!(refusal, Refusal::BadImage | Refusal::Usage);
        assert!(right, "{} {what}: {refusal:?}, {e}", guest.name);
    }
}

#[test]
fn truncated_images_are_refused_or_planned() {
    let dir = Dir::new();
    for guest in distinct() {
        let len = guest.image.len();
        let headers = [1, 2, 51, 52, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097];
        let parts = (1..16).map(|n| len * n / 16).chain([len - 1]);
        for cut in (0..300).step_by(11).chain(headers).chain(parts) {
            let cut = cut.min(len);
            plans_honestly(&dir, guest, &guest.image[..cut], &format!("cut at {cut}"));
        }
    }
}

#[test]
fn truncated_guests_get_a_verdict() {
    need_kvm();
    let dir = Dir::new();
    for (number, guest) in distinct().into_iter().enumerate() {
        let cut = guest.image.len() * [4, 6, 7][number % 3] / 8;
        runs_honestly(&dir, guest, &guest.image[..cut], &format!("cut at {cut}"));
    }
}

/// SplitMix64: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    /// A copy with a bit flipped in its first 64 bytes, one in its first page, one anywhere;
    /// and where.
    fn flip(&mut self, image: &[u8]) -> (Vec<u8>, String) {
        let (mut bytes, mut what) = (image.to_vec(), "flipped at".to_owned());
        for reach in [64, 4096, bytes.len()] {
            let at = self.below(bytes.len().min(reach));
            let bit = self.below(8);
            bytes[at] ^= 1 << bit;
            what.push_str(&format!(" {at}.{bit}"));
        }
        (bytes, what)
    }
}

#[test]
fn flipped_images_are_refused_or_planned() {
    let (dir, mut numbers) = (Dir::new(), Numbers(1));
    for guest in distinct() {
        for _ in 0..25 {
            let (bytes, what) = numbers.flip(guest.image);
            plans_honestly(&dir, guest, &bytes, &what);
        }
    }
}

#[test]
fn flipped_guests_get_a_verdict() {
    need_kvm();
    let (dir, mut numbers) = (Dir::new(), Numbers(2));
    for guest in distinct() {
        let (bytes, what) = numbers.flip(guest.image);
        runs_honestly(&dir, guest, &bytes, &what);
    }
}
