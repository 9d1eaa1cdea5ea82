//! Coverage of kernels: what `--coverage` writes, as LLVM's own tools read it. What these tools
//! are missing for (Debian: clang, llvm; for Rust llvm-N of rustc's own N) counts as ignored.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use common::Dir;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let (clang, rust) = (Tools::for_clang(), Tools::for_rust());
    let trials = vec![
        trial("counts_of_a_64_bit_kernel", &clang, |it| counts(it, "64")),
        trial("counts_of_a_32_bit_kernel", &clang, |it| counts(it, "32")),
        trial("counts_of_a_kernel_that_dies", &clang, counts_of_a_kernel_that_dies),
        trial("tests_are_summed", &clang, tests_are_summed),
        trial("counts_of_a_kernel_in_rust", &rust, counts_of_a_kernel_in_rust),
        Trial::test("an_image_without_counters_is_refused", without_counters),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(
    name: &str,
    tools: &Result<Tools, String>,
    run: fn(&Tools) -> Result<(), Failed>,
) -> Trial {
    if let Err(missing) = tools {
        println!("not run: {name}: there is no {missing}");
    }
    let (there, tools) = (tools.is_ok(), tools.clone());
    Trial::test(name, move || run(&tools?)).with_ignored_flag(!there)
}

/// LLVM's programs, all of one version: each reads the raw format of its own alone.
#[derive(Clone)]
struct Tools {
    suffix: String,
}

impl Tools {
    fn for_clang() -> Result<Self, String> {
        let programs = ["clang", "llvm-profdata", "llvm-cov"];
        let suffixes = ["-14", "-15", "-16", "-19", ""].map(str::to_owned);
        let whole = suffixes.into_iter().find(|suffix| are_there(&programs, suffix));
        whole.map(|suffix| Self { suffix }).ok_or("clang, llvm-profdata and llvm-cov".to_owned())
    }

    /// Those of the LLVM that rustc has in it.
    fn for_rust() -> Result<Self, String> {
        let output = Command::new("rustc").arg("-vV").output().map_err(|_| "rustc")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let major = version.and_then(|it| it.split('.').next()).unwrap_or_default();
        let suffix = format!("-{major}");
        if are_there(&["cargo"], "") && are_there(&["llvm-profdata", "llvm-cov"], &suffix) {
            return Ok(Self { suffix });
        }
        Err(format!("cargo, llvm-profdata{suffix} and llvm-cov{suffix}"))
    }

    /// The kernel, compiled by clang and linked as any other.
    fn build(&self, dir: &Dir, bits: &str, define: &str) -> Result<PathBuf, Failed> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/coverage/kernel.c");
        let (object, image) = (dir.join("kernel.o"), dir.join("kernel"));
        let flags = "-O1 -ffreestanding -fno-pic -mno-red-zone -mgeneral-regs-only \
                     -fprofile-instr-generate -fcoverage-mapping -c";
        let mut clang = Command::new(format!("clang{}", self.suffix));
        clang.args(flags.split_whitespace()).arg(format!("-m{bits}")).args(define.split(' '));
        done(clang.arg(source).arg("-o").arg(&object))?;
        let flags = "-nostdlib -static -no-pie -Wl,-n,--build-id=none,-Ttext=0x100000,\
                     --no-warn-rwx-segments";
        let mut linker = Command::new("cc");
        linker.args(flags.split_whitespace()).arg(format!("-m{bits}"));
        done(linker.arg(&object).arg("-o").arg(&image))?;
        Ok(image)
    }

    /// Every line of the report on the kernel's source, as llvm-cov shows it.
    fn show(&self, dir: &Dir, image: &Path, raw: &Path) -> Result<String, Failed> {
        let merged = dir.join("kernel.profdata");
        let mut profdata = Command::new(format!("llvm-profdata{}", self.suffix));
        done(profdata.arg("merge").arg(raw).arg("-o").arg(&merged))?;
        let mut cov = Command::new(format!("llvm-cov{}", self.suffix));
        done(cov.arg("show").arg(image).arg(format!("-instr-profile={}", merged.display())))
    }
}

fn are_there(programs: &[&str], suffix: &str) -> bool {
    let is_there = |program: &&str| {
        Command::new(format!("{program}{suffix}")).arg("--version").output().is_ok()
    };
    programs.iter().all(is_there)
}

/// Its standard output; a failure with all it said.
fn done(command: &mut Command) -> Result<String, Failed> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{command:?}: {}\n{}", output.status, text(&output.stderr)).into())
}

/// Is each line of source shown with its count?
fn check(shown: &str, lines: &[(&str, u32)]) -> Result<(), Failed> {
    for (source, count) in lines {
        let line = shown.lines().find(|line| line.contains(source));
        let line = line.ok_or_else(|| format!("no {source:?} in\n{shown}"))?;
        if line.split('|').nth(1).map(str::trim) != Some(&count.to_string()) {
            return Err(format!("{count} times {source:?}? {line}\n{shown}").into());
        }
    }
    Ok(())
}

const LOOP: &str = "n = n % 2 ?";
const NEVER: &str = "return n + 1;";

fn counts(tools: &Tools, bits: &str) -> Result<(), Failed> {
    let dir = Dir::new();
    let (image, raw) = (tools.build(&dir, bits, "-DLIVES")?, dir.join("kernel.profraw"));
    common::ringfence(["run", "--timeout", "60s", "--coverage"]).arg(&raw).arg(&image).expect(0);
    check(&tools.show(&dir, &image, &raw)?, &[(LOOP, 8), (NEVER, 0), ("leave(0);", 1)])
}

fn counts_of_a_kernel_that_dies(tools: &Tools) -> Result<(), Failed> {
    let dir = Dir::new();
    let (image, raw) = (tools.build(&dir, "64", "-DDIES")?, dir.join("kernel.profraw"));
    common::ringfence(["run", "--timeout", "60s", "--coverage"]).arg(&raw).arg(&image).expect(80);
    check(&tools.show(&dir, &image, &raw)?, &[(LOOP, 8), (NEVER, 0)])
}

fn tests_are_summed(tools: &Tools) -> Result<(), Failed> {
    let dir = Dir::new();
    let image = tools.build(&dir, "64", "-DLIVES")?;
    let files = dir.join("profiles");
    std::fs::create_dir(&files)?;
    std::fs::write(files.join("of-yesterday.profraw"), "old")?;
    let test = common::ringfence(["test", "--repeat", "5", "--jobs", "2", "--coverage"]);
    test.arg(&files).arg(&image).expect(0);
    let names: Vec<_> = std::fs::read_dir(&files)?.map(|it| it.unwrap().path()).collect();
    let [raw] = &names[..] else { return Err(format!("{names:?}").into()) };
    check(&tools.show(&dir, &image, raw)?, &[(LOOP, 40), (NEVER, 0), ("leave(0);", 5)])
}

fn counts_of_a_kernel_in_rust(tools: &Tools) -> Result<(), Failed> {
    let dir = Dir::new();
    let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/rust-coverage");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rust-kernel"));
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(name);
    }
    cargo.args("build --offline --locked --target-dir".split(' ')).arg(target);
    let flags = r#"target.x86_64-unknown-linux-gnu.rustflags=["-Cinstrument-coverage"]"#;
    done(cargo.args(["--config", flags]))?;
    let image = Path::new(target).join("x86_64-unknown-linux-gnu/debug/rust-kernel");
    let raw = dir.join("kernel.profraw");
    common::ringfence(["run", "--timeout", "60s", "--coverage"]).arg(&raw).arg(&image).expect(0);
    let lines = [("self.taken |= 1 << free;", 1), ("self.taken &= !(1 << page);", 0)];
    check(&tools.show(&dir, &image, &raw)?, &lines)
}

fn without_counters() -> Result<(), Failed> {
    let dir = Dir::new();
    let raw = dir.join("kernel.profraw");
    let run = common::ringfence(["run", "@hello-elf64", "--coverage"]).arg(&raw);
    run.expect(65).one_line("the image has no LLVM profile");
    if raw.exists() { Err("there is a file".into()) } else { Ok(()) }
}
