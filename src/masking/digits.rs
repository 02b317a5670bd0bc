//! Values as digits of 4, 5 and 6 bits: hexadecimal, base32 and base64.

pub(super) const LOWER_HEX: &[u8; 16] = b"0123456789abcdef";
pub(super) const UPPER_HEX: &[u8; 16] = b"0123456789ABCDEF";
pub(super) const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
pub(super) const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
pub(super) const BASE64_URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Numbers of bits of the first 6-bit digit of a value that belong to the text before it: that moves the value by 0, 8 or 16
/// bits against the digits.
pub(super) const BASE64_ALIGNMENTS: [usize; 3] = [0, 4, 2];
/// The corresponding numbers for 5-bit digits.
pub(super) const BASE32_ALIGNMENTS: [usize; 5] = [0, 2, 4, 1, 3];

/// Returns the digits that depend on these bytes alone, whatever precedes and follows them, if the first one begins after
/// `skipped` bits. The number of digits decides how many bits each has.
pub(super) fn encode_digits(bytes: &[u8], skipped: usize, digits: &[u8]) -> Vec<u8> {
    let width = digits.len().ilog2() as usize;
    let starts = (skipped..).step_by(width).take_while(|start| start + width <= bytes.len() * 8);
    starts.map(|start| digits[(start..start + width).fold(0, |digit, at| digit << 1 | bit(bytes, at))]).collect()
}

fn bit(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at / 8] >> (7 - at % 8) & 1)
}

/// Returns the forms of the value at the end of a text in base64: with the last digit, of which some bits are not the
/// value's, and with the padding.
pub(super) fn base64_ends(value: &[u8]) -> Vec<Vec<u8>> {
    let mut ends = Vec::new();
    for skipped in BASE64_ALIGNMENTS {
        for digits in [BASE64, BASE64_URL] {
            let rest = (value.len() * 8).saturating_sub(skipped) % 6;
            if let (Some(last), 2 | 4) = (value.last(), rest) {
                let mut end = encode_digits(value, skipped, digits);
                end.push(digits[usize::from(last << (6 - rest) & 63)]);
                ends.push(end.clone());
                end.extend(if rest == 2 { "==" } else { "=" }.bytes());
                ends.push(end);
            }
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o3_the_end_of_base64_has_its_last_digit_and_its_padding() {
        use base64::Engine;
        for before in ["", "x", "xy"] {
            for length in 4..10 {
                let value = &b"q?>\xff~zzab"[..length];
                let text = base64::prelude::BASE64_STANDARD.encode([before.as_bytes(), value].concat());
                let padded = text.ends_with('=');
                let ends = base64_ends(value);
                assert!(!padded || ends.iter().any(|end| text.as_bytes().ends_with(end)), "{before} {length}");
            }
        }
    }

    #[test]
    fn base32_has_digits_of_five_bits_at_every_alignment() {
        assert_eq!(encode_digits(b"foobar", 0, BASE32), b"MZXW6YTBO");
        for (before, skipped) in (0..).zip(BASE32_ALIGNMENTS) {
            let text = [&b"....."[..before], b"foobar"].concat();
            let whole = encode_digits(&text, 0, BASE32);
            let own = encode_digits(b"foobar", skipped, BASE32);
            assert!(whole.windows(own.len()).any(|window| window == own), "{before}");
        }
    }
}
