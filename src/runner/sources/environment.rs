//! The environment that kvm-unit-tests read from their first module: `KEY=VALUE` lines, as
//! `run_tests.sh` composes them. (kvm-unit-tests, scripts/arch-run.bash, env_params; lib/x86/fwcfg.c)

use crate::runner::test::Test;

/// Where Linux says its version (proc(5)).
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// What a test is told of its machine, instead of the firmware's configuration device, and of
/// the host's kernel.
pub(super) fn text(test: &Test) -> String {
    let release = std::fs::read_to_string(RELEASE).unwrap_or_default();
    let cpus = test.machine.cpus.unwrap_or(1);
    let mut text = format!("NR_CPUS={cpus}\nMEMSIZE={}\nTEST_DEVICE=1\n", test.memory >> 20);
    for (key, value) in kernel(release.trim()) {
        text += &format!("{key}={value}\n");
    }
    text
}

/// `6.12.3-rc4-amd64`: version, patch level, sublevel, and the rest.
fn kernel(release: &str) -> [(&'static str, String); 5] {
    let (number, extra) = release.split_once('-').unwrap_or((release, ""));
    let mut parts = number.splitn(3, '.').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    [
        ("KERNEL_VERSION_STRING", release.to_owned()),
        ("KERNEL_VERSION", next()),
        ("KERNEL_PATCHLEVEL", next()),
        ("KERNEL_SUBLEVEL", next()),
        ("KERNEL_EXTRAVERSION", extra.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_in_parts() {
        let parts = kernel("6.12.3-rc4-amd64").map(|(_, value)| value);
        assert_eq!(parts, ["6.12.3-rc4-amd64", "6", "12", "3", "rc4-amd64"]);
        assert_eq!(kernel("6.18").map(|(_, value)| value), ["6.18", "6", "18", "", ""]);
    }

    #[test]
    fn memory_is_in_mebibytes() {
        let mut test = Test::for_tests("t", 512 << 20);
        test.machine.cpus = Some(4);
        assert!(text(&test).starts_with("NR_CPUS=4\nMEMSIZE=512\nTEST_DEVICE=1\nKERNEL_"));
    }
}
