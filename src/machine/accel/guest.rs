//! The guest of the KVM probe, as data: its trials, its memory, the registers it starts with.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// A few instructions of 64-bit code that leave `answer` in AL.
#[derive(Clone, Copy)]
pub(super) struct Trial {
    pub(super) name: &'static str,
    pub(super) code: &'static [u8],
    pub(super) answer: u8,
}

/// All trials, the likelier to fail first; the loop is last because it costs the most where it fails.
pub(super) const TRIALS: [Trial; 6] = [
    // mov eax, 0xff; popcnt eax, eax
    Trial { name: "popcnt", code: &[0xb8, 0xff, 0, 0, 0, 0xf3, 0x0f, 0xb8, 0xc0], answer: 8 },
    // mov eax, 5; movd xmm0, eax; pxor xmm1, xmm1; pxor xmm1, xmm0; movd eax, xmm1
    Trial {
        name: "pxor",
        code: &[
            0xb8, 5, 0, 0, 0, 0x66, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0xef, 0xc9, 0x66, 0x0f, 0xef, 0xc8, 0x66, 0x0f, 0x7e,
            0xc8,
        ],
        answer: 5,
    },
    // xor eax, eax; int3, whose handler sets AL
    Trial { name: "int3", code: &[0x31, 0xc0, 0xcc], answer: 3 },
    // xor eax, eax; xor edx, edx; xor ecx, ecx; mov ebx, 16; lock cmpxchg16b [SCRATCH]; mov al, [SCRATCH]
    Trial {
        name: "lock cmpxchg16b",
        code: &[
            0x31, 0xc0, 0x31, 0xd2, 0x31, 0xc9, 0xbb, 16, 0, 0, 0, 0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0, SCRATCH, 0,
            0, 0x8a, 0x04, 0x25, 0, SCRATCH, 0, 0,
        ],
        answer: 16,
    },
    // mov rax, cr4; or eax, OSXSAVE; mov cr4, rax; xor ecx, ecx; xor edx, edx; mov eax, 3; xsetbv; xgetbv
    Trial {
        name: "xsetbv",
        code: &[
            0x0f, 0x20, 0xe0, 0x0d, 0, 0, 4, 0, 0x0f, 0x22, 0xe0, 0x31, 0xc9, 0x31, 0xd2, 0xb8, 3, 0, 0, 0, 0x0f, 0x01,
            0xd1, 0x0f, 0x01, 0xd0,
        ],
        answer: 3,
    },
    // mov ecx, 10000; dec ecx; jnz to the dec; lea eax, [rcx + 7]
    Trial { name: "dec/jnz", code: &[0xb9, 0x10, 0x27, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0x8d, 0x41, 7], answer: 7 },
];

/// The port of the report. Not 0x80: KVM used to let guests write that one directly to the hardware.
pub(super) const PORT: u16 = 0xe9;
/// Code: out PORT, al
const REPORT: [u8; 2] = [0xe6, 0xe9];
/// Code: mov al, 3; iretq
const INT3_HANDLER: [u8; 4] = [0xb0, 3, 0x48, 0xcf];

// Where things are in the guest's memory: three page tables, and a page with all the rest. The stack grows down from
// its end.
const PML4: usize = 0;
const PDPT: usize = 0x1000;
const PAGE_DIRECTORY: usize = 0x2000;
const GDT: usize = 0x3000;
const IDT: usize = 0x3100;
const HANDLER: usize = 0x3200;
const CODE: usize = 0x3300;
const SCRATCH: u8 = 0x38; // the second byte of its address, 0x3800
pub(super) const MEMORY: usize = 0x4000;

const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;

/// The guest's memory, page-aligned as KVM requires.
#[repr(C, align(4096))]
pub(super) struct ProbeMemory([u8; MEMORY]);

impl ProbeMemory {
    /// Creates memory with identity-mapped page tables, a GDT, an IDT with its third gate, and the trials one after the
    /// other.
    pub(super) fn with(trials: &[Trial]) -> Self {
        let mut memory = Self([0; MEMORY]);
        // Present and writable; the page directory's only entry is a 2 MiB page at 0.
        memory.put(PML4, &(PDPT as u64 | 0x3).to_le_bytes());
        memory.put(PDPT, &(PAGE_DIRECTORY as u64 | 0x3).to_le_bytes());
        memory.put(PAGE_DIRECTORY, &0x83_u64.to_le_bytes());
        // Flat 64-bit code and flat data; `int3` and `iretq` load them from here.
        memory.put(GDT + usize::from(CODE_SELECTOR), &0x00af_9b00_0000_ffff_u64.to_le_bytes());
        memory.put(GDT + usize::from(DATA_SELECTOR), &0x00cf_9300_0000_ffff_u64.to_le_bytes());
        let gate = (HANDLER as u64 & 0xffff) | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32;
        memory.put(IDT + 3 * 16, &gate.to_le_bytes());
        memory.put(HANDLER, &INT3_HANDLER);
        let code: Vec<u8> = trials.iter().flat_map(|trial| [trial.code, &REPORT].concat()).collect();
        memory.put(CODE, &code);
        memory
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Returns the special registers of 64-bit kernel mode with SSE on; as Intel SDM volume 3, 9.8.5 leaves them.
pub(super) fn long_mode(reset: &kvm_sregs) -> kvm_sregs {
    let data = kvm_segment {
        limit: u32::MAX,
        selector: DATA_SELECTOR,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let code = kvm_segment { selector: CODE_SELECTOR, type_: 11, db: 0, l: 1, ..data };
    kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdt: kvm_dtable { base: GDT as u64, limit: 23, ..kvm_dtable::default() },
        idt: kvm_dtable { base: IDT as u64, limit: 63, ..kvm_dtable::default() },
        cr0: 0x8000_0033, // paging, native FPU errors, monitor coprocessor, protection
        cr3: PML4 as u64,
        cr4: 0x620,  // PAE, FXSAVE and SSE, SSE exceptions
        efer: 0x500, // long mode enabled and active
        ..*reset
    }
}

/// Returns the registers that a guest starts with.
pub(super) fn entry_point() -> kvm_regs {
    kvm_regs { rip: CODE as u64, rsp: MEMORY as u64, rflags: 2, ..kvm_regs::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    /// Checks the answers with QEMU's software emulation of the same bytes, the only positive control on a host without KVM.
    #[test]
    fn an_emulated_processor_gives_the_right_answers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (memory, firmware) = (folder.path().join("memory"), folder.path().join("firmware"));
        let stop = Trial { name: "ud2", code: &[0x0f, 0x0b], answer: 0 };
        fs::write(&memory, ProbeMemory::with(&[TRIALS.as_slice(), &[stop]].concat()).0).expect("written");
        fs::write(&firmware, entry_firmware()).expect("written");
        let output = Command::new("timeout")
            .args(["60", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "16"])
            .args(["-chardev", "stdio,id=out,signal=off", "-device", "isa-debugcon,iobase=0xe9,chardev=out"])
            .args(["-device", &format!("loader,addr=0,force-raw=on,file={}", memory.display())])
            .args(["-bios".as_ref(), firmware.as_os_str()])
            .output()
            .expect("coreutils and QEMU are installed");
        let answers: Vec<u8> = TRIALS.iter().map(|trial| trial.answer).collect();
        assert_eq!(output.stdout, answers, "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns a firmware image that does what [`long_mode`] does through KVM: from the reset vector to the trials.
    fn entry_firmware() -> Vec<u8> {
        let mut firmware = vec![0; 0x10000];
        let mut put = |at: usize, bytes: &[u8]| firmware[at..at + bytes.len()].copy_from_slice(bytes);
        put(0xfff0, &[0xea, 0, 0, 0, 0xf0]); // jmp 0xf000:0, the copy below 1 MiB
        let code: [&[u8]; 12] = [
            &[0xfa],                                           // cli
            &[0x2e, 0x66, 0x0f, 0x01, 0x16, 0x00, 0x01],       // lgdt cs:[0x100]
            &[0x2e, 0x66, 0x0f, 0x01, 0x1e, 0x08, 0x01],       // lidt cs:[0x108]
            &[0x66, 0xbc, 0, 0x40, 0, 0],                      // mov esp, MEMORY
            &[0x66, 0xb8, 0x20, 0x06, 0, 0, 0x0f, 0x22, 0xe0], // mov cr4, 0x620
            &[0x66, 0x31, 0xc0, 0x0f, 0x22, 0xd8],             // mov cr3, PML4
            &[0x66, 0xb9, 0x80, 0, 0, 0xc0],                   // mov ecx, EFER
            &[0x66, 0x31, 0xd2, 0x66, 0xb8, 0, 1, 0, 0],       // edx:eax = LME
            &[0x0f, 0x30],                                     // wrmsr
            &[0x66, 0xb8, 0x33, 0, 0, 0x80],                   // mov eax, 0x80000033
            &[0x0f, 0x22, 0xc0],                               // mov cr0, eax
            &[0x66, 0xea, 0, 0x33, 0, 0, 8, 0],                // jmp CODE_SELECTOR:CODE
        ];
        put(0, &code.concat());
        put(0x100, &[23, 0, 0, 0x30, 0, 0]); // limit and base of the GDT
        put(0x108, &[63, 0, 0, 0x31, 0, 0]); // and of the IDT
        firmware
    }
}
