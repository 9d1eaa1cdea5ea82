//! What the host offers: the device node, the capabilities, the kind of KVM behind it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;
use super::capability::CAPABILITIES;

/// The kind of KVM behind the device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// VT-x.
    KvmIntel,
    /// AMD-V.
    KvmAmd,
    /// A software KVM: guest ring 0 is emulated.
    KvmPvm,
    /// None of the modules that are known here is loaded.
    Unknown,
}

impl Backend {
    /// Finds out by the modules of the running kernel; a built-in one has its directory too.
    pub fn detect() -> Self {
        Self::detect_in(Path::new("/sys"))
    }

    /// The same for a sysfs elsewhere.
    pub fn detect_in(sysfs: &Path) -> Self {
        let is_loaded = |kind: &Self| sysfs.join("module").join(kind.name()).exists();
        let known = [Self::KvmIntel, Self::KvmAmd, Self::KvmPvm];
        known.into_iter().find(is_loaded).unwrap_or(Self::Unknown)
    }

    /// Does the processor translate guest-physical addresses by a second level of page tables?
    /// False where that is not sure.
    pub fn has_second_level(self) -> bool {
        let parameter = match self {
            Self::KvmIntel => "/sys/module/kvm_intel/parameters/ept",
            Self::KvmAmd => "/sys/module/kvm_amd/parameters/npt",
            Self::KvmPvm | Self::Unknown => return false,
        };
        let value = std::fs::read_to_string(parameter);
        value.is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    }

    /// Its name: that of the kernel module.
    pub fn name(self) -> &'static str {
        match self {
            Self::KvmIntel => "kvm_intel",
            Self::KvmAmd => "kvm_amd",
            Self::KvmPvm => "kvm_pvm",
            Self::Unknown => "kvm",
        }
    }
}

/// The open device node.
#[derive(Debug)]
pub struct Kvm {
    pub(super) fd: kvm_ioctls::Kvm,
    path: PathBuf,
}

impl Kvm {
    /// Opens the device node and checks what every machine needs.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let kvm = Self::open_any(path)?;
        for cap in CAPABILITIES.iter().filter(|cap| cap.required) {
            if kvm.fd.check_extension_raw(cap.number.into()) <= 0 {
                return Err(Error::Missing { path: path.display().to_string(), missing: cap.name });
            }
        }
        Ok(kvm)
    }

    /// Opens the device node of whatever KVM it is.
    pub(super) fn open_any(path: &Path) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Open {
            path: name(),
            advice: "the path has a NUL in it",
            source: io::ErrorKind::InvalidInput.into(),
        })?;
        let fd = kvm_ioctls::Kvm::new_with_path(&c_path).map_err(|e| Error::Open {
            path: name(),
            advice: advice(e.errno()),
            source: e.into(),
        })?;
        if fd.get_api_version() != 12 {
            return Err(Error::Missing { path: name(), missing: "the stable KVM API, version 12" });
        }
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Fails where the host offers less than `cpus` vCPUs a VM.
    pub fn check_cpus(&self, cpus: u32) -> Result<(), Error> {
        if cpus as usize <= self.fd.get_max_vcpus() {
            return Ok(());
        }
        let path = self.path.display().to_string();
        Err(Error::Missing {
            path,
            missing: "room for so many processors in one VM (KVM_CAP_MAX_VCPUS); ask for less with --cpus",
        })
    }
}

fn advice(errno: i32) -> &'static str {
    match errno {
        libc::ENOENT => {
            "there is no such device; load kvm_intel or kvm_amd (modprobe), turn virtualisation on in the firmware, or nested virtualisation if this is a VM; without any of it, see scripts/rig"
        }
        libc::EACCES | libc::EPERM => {
            "no permission; add yourself to its group (sudo usermod -aG kvm $USER, then log in again), or in CI install the udev rule of the README"
        }
        libc::ENODEV | libc::ENXIO => "the device has no driver; load kvm_intel or kvm_amd",
        libc::EMFILE | libc::ENFILE => "too many files are open; see ulimit -n",
        _ => "see the reason",
    }
}
