//! Unpacks one compressed cluster to exactly one cluster of data.
//!
//! Source: `docs/interop/qcow2.rst`, "Compressed Clusters Descriptor" and `compression_type`. The compressed bytes are whole
//! sectors, so unrelated data follows the end of the stream and is ignored. A stream that would unpack to more than a
//! cluster is an attack or damage; the output buffer is one byte too long to detect it.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

use super::header::Codec;

/// log2 of the memory that a zstd frame may require. QEMU's frames need a cluster, at most 2^21; the default limit of 2^27
/// would let every cluster of a hostile image take 128 MiB.
const WINDOW_LOG: u32 = 22;

/// Unpacks `packed` to exactly `cluster` bytes.
pub(super) fn unpack(codec: Codec, packed: &[u8], cluster: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; cluster + 1];
    let length = match codec {
        Codec::Deflate => inflate(packed, &mut bytes)?,
        Codec::Zstd => unzstd(packed, &mut bytes)?,
    };
    if length != cluster {
        let what = if length > cluster { "more" } else { "less" };
        return Err(io::Error::other(format!("a compressed cluster unpacks to {what} than {cluster} bytes")));
    }
    bytes.truncate(cluster);
    Ok(bytes)
}

fn inflate(packed: &[u8], bytes: &mut [u8]) -> io::Result<usize> {
    let mut inflater = Decompress::new(false);
    let status = inflater.decompress(packed, bytes, FlushDecompress::Finish).map_err(io::Error::other)?;
    let length = usize::try_from(inflater.total_out()).unwrap_or(usize::MAX);
    // A full buffer without the end of the stream is left to the length check; QEMU too accepts a cluster whose stream lacks
    // its end mark.
    match status {
        Status::Ok | Status::BufError | Status::StreamEnd => Ok(length),
    }
}

fn unzstd(packed: &[u8], bytes: &mut [u8]) -> io::Result<usize> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(bytes);
    loop {
        let before = (input.pos(), output.pos());
        let frame_over = decoder.run(&mut input, &mut output)? == 0;
        if frame_over || (input.pos(), output.pos()) == before {
            return Ok(output.pos());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pack(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Zstd => zstd::bulk::compress(bytes, 3).unwrap(),
            Codec::Deflate => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    #[test]
    fn b10_exactly_one_cluster_comes_out() {
        for codec in [Codec::Deflate, Codec::Zstd] {
            let mut packed = pack(codec, &[7; 4096]);
            packed.extend([0xaa; 300]);
            assert_eq!(unpack(codec, &packed, 4096).unwrap(), [7; 4096], "the rest of the sector is ignored");
            let bomb = pack(codec, &vec![0; 64 << 20]);
            assert!(unpack(codec, &bomb, 4096).unwrap_err().to_string().contains("more than 4096"));
            assert!(unpack(codec, &pack(codec, &[7; 4095]), 4096).unwrap_err().to_string().contains("less than"));
            assert!(unpack(codec, &[0xff; 512], 4096).is_err());
            assert!(unpack(codec, &[], 4096).is_err());
        }
    }
}
