//! The instructions that kiln's initramfs carries for the first process of a direct boot.

/// The path of the instructions in the initramfs.
pub const INSTRUCTIONS: &str = "/kiln/boot";
/// The folder of the kernel's modules in the initramfs; they are loaded in the order of their names.
pub const MODULES: &str = "/kiln/modules";
/// Asks the first process for a reboot, when the agent has ended.
pub const REBOOT_REQUEST: &str = "/run/kiln/reboot";
/// How a line begins that the first process writes on the console.
pub const REPORT_PREFIX: &str = "kiln: ";

/// What the first process of a direct boot needs to know.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BootInstructions {
    /// The number of the root's partition as in Linux; 0 for the whole disk.
    pub partition: u32,
    /// The type of the root file system, as mount(2) takes it.
    pub file_system: String,
    /// The number of the partition with `/usr`, an ext4 file system; `None` if it is in the root, or the host cannot know.
    pub usr: Option<u32>,
    /// Drivers that modprobe(8) loads: first that of the initrd, then that of the root.
    pub drivers: Vec<String>,
    /// Whether the disk is larger than the base image, so that the root is to be grown.
    pub grow: bool,
    /// Whether there is a network card, which QEMU's user-mode network answers.
    pub network: bool,
}

impl BootInstructions {
    /// Writes the instructions, one on each line.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!("root {} {}", self.partition, self.file_system)];
        lines.extend(self.usr.map(|partition| format!("usr {partition}")));
        lines.extend(self.drivers.iter().map(|driver| format!("driver {driver}")));
        lines.extend(self.grow.then(|| "grow".to_owned()));
        lines.extend(self.network.then(|| "network".to_owned()));
        lines.join("\n") + "\n"
    }

    /// Parses the output of [`BootInstructions::to_text`]; `None` if it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut instructions = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["root", partition, file_system] => {
                    instructions.partition = partition.parse().ok()?;
                    file_system.clone_into(&mut instructions.file_system);
                }
                ["usr", partition] => instructions.usr = Some(partition.parse().ok()?),
                ["driver", driver] => instructions.drivers.push(driver.to_owned()),
                ["grow"] => instructions.grow = true,
                ["network"] => instructions.network = true,
                _ => return None,
            }
        }
        (!instructions.file_system.is_empty()).then_some(instructions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_read_as_they_were_written() {
        let plain = BootInstructions { partition: 15, file_system: "ext4".into(), ..BootInstructions::default() };
        let full = BootInstructions {
            usr: Some(3),
            drivers: vec!["virtio_blk".into(), "xfs".into()],
            grow: true,
            network: true,
            ..plain.clone()
        };
        for instructions in [plain, full] {
            assert_eq!(BootInstructions::parse(&instructions.to_text()), Some(instructions));
        }
        for text in ["", "root", "root x ext4\n", "root 1\n", "root 1 ext4\nswap\n", "grow\n", "root 1 ext4\nusr x\n"] {
            assert_eq!(BootInstructions::parse(text), None, "{text}");
        }
    }
}
