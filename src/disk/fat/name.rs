//! Names of files: eleven bytes of an old code page, and long names in UTF-16 in the entries before them.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable};

/// Upper half of code page 437, in which Linux reads short names.
const CODE_PAGE: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";
/// Bits of byte 12: the name, or the extension, is in lower case.
const LOWER_NAME: u8 = 0x08;
const LOWER_END: u8 = 0x10;
/// The bit of a part's order that marks the first entry, which has the end of the name.
const LAST: u8 = 0x40;
/// The most parts of a long name: 20 entries of 13 units.
const MAX_PARTS: u8 = 20;

/// An entry with a part of a long name.
#[derive(FromBytes, Immutable)]
#[repr(C)]
pub(super) struct LongNameEntry {
    ldir_ord: u8,
    ldir_name1: [U16; 5],
    ldir_attr: u8,
    ldir_type: u8,
    ldir_chksum: u8,
    ldir_name2: [U16; 6],
    ldir_fst_clus_lo: U16,
    ldir_name3: [U16; 2],
}

/// Returns the short name of an entry, in UTF-8; `case` is `DIR_NTRes`.
pub(super) fn short_name(mut bytes: [u8; 11], case: u8) -> Vec<u8> {
    // The byte that would mark a deleted entry is replaced by another one.
    if bytes[0] == 0x05 {
        bytes[0] = 0xe5;
    }
    let (name, end) = bytes.split_at(8);
    let mut text = part(name, case & LOWER_NAME != 0);
    let end = part(end, case & LOWER_END != 0);
    if !end.is_empty() {
        text.push('.');
        text.push_str(&end);
    }
    text.into_bytes()
}

fn part(bytes: &[u8], is_lower: bool) -> String {
    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    bytes[..end].iter().map(|byte| character(*byte, is_lower)).collect()
}

fn character(byte: u8, is_lower: bool) -> char {
    match byte {
        0x80.. => CODE_PAGE.chars().nth(usize::from(byte - 0x80)).unwrap_or('?'),
        _ if is_lower => char::from(byte.to_ascii_lowercase()),
        _ => char::from(byte),
    }
}

/// A long name, whose parts precede the entry that it belongs to, its end first.
#[derive(Debug, Default)]
pub(super) struct LongName {
    /// The order of the last part seen; 1 if the name is complete, 0 if there is none.
    order: u8,
    checksum: u8,
    units: Vec<u16>,
}

impl LongName {
    /// Forgets the parts seen so far.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds a part. A part that does not continue the previous one begins a new name, or is ignored.
    pub(super) fn add(&mut self, entry: &LongNameEntry) {
        let order = entry.ldir_ord;
        let checksum = entry.ldir_chksum;
        if order & LAST != 0 {
            let order = order & !LAST;
            *self = Self { order: if order <= MAX_PARTS { order } else { 0 }, checksum, units: Vec::new() };
        } else if self.order != order + 1 || self.checksum != checksum {
            return self.clear();
        } else {
            self.order = order;
        }
        let part = entry.ldir_name1.iter().chain(&entry.ldir_name2).chain(&entry.ldir_name3);
        self.units.splice(..0, part.map(|unit| unit.get()));
    }

    /// Returns the name in UTF-8, if it is complete and belongs to the entry with this short name. Unpaired surrogates are
    /// left out, as in Linux.
    pub(super) fn take(&mut self, short: &[u8; 11]) -> Option<Vec<u8>> {
        let Self { order, checksum, units } = std::mem::take(self);
        // "ldir_Chksum".
        let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if order != 1 || sum != checksum {
            return None;
        }
        let units = units.into_iter().take_while(|unit| *unit != 0);
        Some(char::decode_utf16(units).flatten().collect::<String>().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_has_its_case_and_its_code_page() {
        let name = |bytes: &[u8; 11], case: u8| String::from_utf8(short_name(*bytes, case)).unwrap();
        assert_eq!(CODE_PAGE.chars().count(), 128);
        assert_eq!(name(b"GRUBX64 EFI", 0), "GRUBX64.EFI");
        assert_eq!(name(b"GRUBX64 EFI", LOWER_NAME | LOWER_END), "grubx64.efi");
        assert_eq!(name(b"GRUB    CFG", LOWER_END), "GRUB.cfg");
        assert_eq!(name(b"EFI        ", 0), "EFI");
        assert_eq!(name(b"A B     C  ", 0), "A B.C");
        assert_eq!(name(b"\x05\x81      TXT", 0), "σü.TXT");
    }

    #[test]
    fn a_long_name_counts_only_whole_and_where_it_belongs() {
        let short = b"LONGNA~1TXT";
        let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        let entry = |order: u8, text: &str, sum: u8| {
            let mut entry = [0xff; 32];
            (entry[0], entry[11], entry[13]) = (order, 0x0f, sum);
            let units = text.encode_utf16().chain([0]).chain(std::iter::repeat(0xffff));
            for (at, unit) in [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30].into_iter().zip(units) {
                entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            LongNameEntry::read_from_bytes(&entry).unwrap()
        };
        let name = |entries: &[LongNameEntry]| {
            let mut long = LongName::default();
            for entry in entries {
                long.add(entry);
            }
            long.take(short).map(|name| String::from_utf8(name).unwrap())
        };
        let whole = [entry(0x42, "ü🦀.txt", sum), entry(1, "a long name, ", sum)];
        assert_eq!(name(&whole).unwrap(), "a long name, ü🦀.txt");
        assert_eq!(name(&whole[..1]), None, "its beginning is missing");
        assert_eq!(name(&whole[1..]), None, "its end is missing");
        assert_eq!(name(&[entry(0x41, "other", sum + 1)]), None, "another file's");
        assert_eq!(name(&[entry(0x42, "a", sum), entry(1, "b", sum + 1)]), None, "of two files");
        assert_eq!(name(&[entry(0x7f, "a", sum)]), None, "longer than any");
        assert_eq!(name(&[]), None);
    }
}
