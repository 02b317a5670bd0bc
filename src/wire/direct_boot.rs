//! The instructions that kiln's initramfs carries for the first process of a direct boot.

/// The path of the instructions in the initramfs.
pub const INSTRUCTIONS: &str = "/kiln/boot";
/// The folder of the kernel's modules in the initramfs; they are loaded in the order of their names.
pub const MODULES: &str = "/kiln/modules";
/// Asks the first process for a reboot, when the agent has ended.
pub const REBOOT_REQUEST: &str = "/run/kiln/reboot";

/// What the first process of a direct boot needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootInstructions {
    /// The number of the root's partition as in Linux; 0 for the whole disk.
    pub partition: u32,
    /// The type of the root file system, as mount(2) takes it.
    pub file_system: String,
    /// Whether the disk is larger than the base image, so that the root is to be grown.
    pub grow: bool,
    /// Whether there is a network card, which QEMU's user-mode network answers.
    pub network: bool,
}

impl BootInstructions {
    /// Writes the instructions, one on each line.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("root {} {}\n", self.partition, self.file_system);
        for (word, is_set) in [("grow", self.grow), ("network", self.network)] {
            if is_set {
                text.push_str(word);
                text.push('\n');
            }
        }
        text
    }

    /// Parses the output of [`BootInstructions::to_text`]; `None` if it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut root = lines.next()?.strip_prefix("root ")?.split(' ');
        let partition = root.next()?.parse().ok()?;
        let file_system = root.next()?.to_owned();
        let mut instructions = Self { partition, file_system, grow: false, network: false };
        for line in lines {
            match line {
                "grow" => instructions.grow = true,
                "network" => instructions.network = true,
                _ => return None,
            }
        }
        Some(instructions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_read_as_they_were_written() {
        for (grow, network) in [(false, false), (true, false), (false, true), (true, true)] {
            let instructions = BootInstructions { partition: 15, file_system: "ext4".into(), grow, network };
            assert_eq!(BootInstructions::parse(&instructions.to_text()), Some(instructions));
        }
        for text in ["", "root", "root x ext4\n", "root 1\n", "root 1 ext4\nswap\n"] {
            assert_eq!(BootInstructions::parse(text), None, "{text}");
        }
    }
}
