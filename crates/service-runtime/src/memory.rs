use std::io;

/// Physical memory of a process, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What it holds now, including its program's pages (`VmRSS`).
    pub resident: u64,
    /// The most it has held so far (`VmHWM`).
    pub peak: u64,
}

impl Memory {
    /// The memory of this process.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of_this_process() -> io::Result<Self> {
        Self::read("self")
    }

    /// The memory of another process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(process: u32) -> io::Result<Self> {
        Self::read(&process.to_string())
    }

    fn read(process: &str) -> io::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        Self::parse(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the process has no memory"))
    }

    /// From `/proc/PID/status` (proc_pid_status(5)), which, unlike `smaps`, can be read even if the process forbids it.
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.strip_suffix("kB")?.trim().parse().ok()
        };
        Some(Self {
            resident: field("VmRSS:")?,
            peak: field("VmHWM:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_names() {
        let status = "Name:\tkey-service\nVmHWM:\t    9344 kB\nVmRSS:\t    9216 kB\n";
        let expected = Memory {
            resident: 9216,
            peak: 9344,
        };
        assert_eq!(Memory::parse(status), Some(expected));
        assert_eq!(Memory::parse("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = Memory::of_this_process().unwrap();
        assert!(memory.peak >= memory.resident && memory.resident > 0);
    }
}
