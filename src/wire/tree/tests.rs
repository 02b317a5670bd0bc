use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn head() -> Head {
    let owner = Owner { user: "root".into(), group: None };
    Head { to: b"/srv".to_vec(), name: b"site".to_vec(), into: true, contents: false, owner: Some(owner) }
}

fn entry(path: &[u8], kind: Kind) -> Entry {
    Entry { path: path.to_vec(), mode: 0o644, mtime: -5, xattrs: Vec::new(), kind }
}

/// An extent of a file: offset and content.
type Extent = (u64, Vec<u8>);

fn write(layout: Layout, files: &[Vec<Extent>]) -> (Vec<u8>, Vec<usize>) {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, layout, head()).unwrap();
    let mut starts = Vec::new();
    for (n, extents) in files.iter().enumerate() {
        let size = extents.last().map_or(9, |(offset, bytes)| offset + bytes.len() as u64);
        encoder.entry(entry(n.to_string().as_bytes(), Kind::File { size })).unwrap();
        for (offset, bytes) in extents {
            encoder.data(*offset, bytes.len() as u64).unwrap();
            starts.push(usize::try_from(encoder.position()).unwrap());
            encoder.content(bytes).unwrap();
        }
    }
    encoder.finish().unwrap();
    (out, starts)
}

fn read_files(bytes: &[u8]) -> io::Result<Vec<Vec<Extent>>> {
    let (mut decoder, found) = Decoder::new(io::BufReader::with_capacity(999, bytes))?;
    assert_eq!(found, head());
    let mut files: Vec<Vec<Extent>> = Vec::new();
    loop {
        match decoder.next_item()? {
            TreeItem::Entry(_) => files.push(Vec::new()),
            TreeItem::Data { offset } => {
                let mut content = Vec::new();
                while let Some(n) = Some(decoder.content()?.len()).filter(|n| *n > 0) {
                    content.extend_from_slice(decoder.content()?);
                    decoder.consume(n);
                }
                files.last_mut().expect("content belongs to a file").push((offset, content));
            }
            TreeItem::Note(_) => {}
            TreeItem::End(totals) => {
                assert_eq!(totals.entries, files.len() as u64);
                return Ok(files);
            }
        }
    }
}

fn files() -> impl Strategy<Value = Vec<Vec<Extent>>> {
    let extent = (0u64..5000, prop_oneof![1usize..2000, 60_000usize..140_000], any::<u8>());
    let file = vec(extent, 0..4).prop_map(|extents| {
        let mut end = 0;
        let place = |(gap, length, fill): (u64, usize, u8)| {
            let offset = end + gap;
            end = offset + length as u64;
            (offset, vec![fill; length])
        };
        extents.into_iter().map(place).collect()
    });
    vec(file, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn files_survive_both_layouts_and_large_extents_are_aligned_on_a_device(files in files()) {
        let (packed, _) = write(Layout::Packed, &files);
        prop_assert_eq!(&read_files(&packed).unwrap(), &files);
        let (aligned, starts) = write(Layout::Aligned, &files);
        prop_assert_eq!(&read_files(&aligned).unwrap(), &files);
        for (start, (_, content)) in starts.into_iter().zip(files.iter().flatten()) {
            prop_assert!((content.len() as u64) < LARGE || start % BLOCK == 0);
        }
    }

    #[test]
    fn a_stream_cut_short_is_an_error(files in files(), at: prop::sample::Index) {
        let (bytes, _) = write(Layout::Packed, &files);
        prop_assert!(read_files(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..500), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)) {
        let _ = Decoder::new(bytes.as_slice());
        let (mut stream, _) = write(Layout::Packed, &[vec![(3, bytes)], vec![]]);
        for (at, flip) in flips {
            let at = at.index(stream.len());
            stream[at] ^= flip;
        }
        if let Ok((mut decoder, _)) = Decoder::new(stream.as_slice()) {
            while decoder.next_item().is_ok_and(|item| !matches!(item, TreeItem::End(_))) {}
        }
    }
}

#[test]
fn g5_paths_that_lead_elsewhere_are_refused() {
    let ok = |path: &[u8]| check(&entry(path, Kind::Dir {})).is_ok();
    for good in [b"".as_slice(), b"a", b"a/b", b"...", b"\xff/\n", &[b'x'; 255]] {
        assert!(ok(good), "{good:?}");
    }
    let long = vec![b"x".as_slice(); 2049].join(b"/".as_slice());
    for bad in [b"/".as_slice(), b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"a/.", b"a\0b", &[b'x'; 256], &long] {
        assert!(!ok(bad), "{bad:?}");
    }
}

#[test]
fn limits_are_limits() {
    let xattr = |name: &[u8], n| Xattr { name: name.to_vec(), value: vec![0; n] };
    let with = |xattrs| Entry { xattrs, ..entry(b"a", Kind::Fifo {}) };
    assert!(check(&with(vec![xattr(b"user.a", MAX_XATTRS - 14)])).is_ok());
    assert!(check(&with(vec![xattr(b"user.a", MAX_XATTRS - 13)])).is_err());
    assert!(check(&with(vec![xattr(b"", 0)])).is_err());
    assert!(check(&Entry { mode: 0o10_000, ..entry(b"a", Kind::Dir {}) }).is_err());
    assert!(check(&entry(b"a", Kind::Hardlink { target: b"../b".to_vec() })).is_err());
    assert!(check(&entry(b"a", Kind::Symlink { target: vec![b'x'; MAX_PATH] })).is_err());
    assert!(check(&entry(b"a", Kind::File { size: 1 << 63 })).is_err());
}

#[test]
fn g5_extents_must_ascend_within_their_file() {
    let read = |extents: &[(u64, u64)]| {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, Layout::Packed, head()).unwrap();
        encoder.entry(entry(b"a", Kind::File { size: 10 })).unwrap();
        for (offset, length) in extents {
            encoder.data(*offset, *length).unwrap();
            encoder.content(&vec![0; usize::try_from(*length).unwrap().min(100)]).unwrap();
        }
        encoder.finish().unwrap();
        read_files(&out).map(|files| files[0].len()).map_err(|error| error.kind())
    };
    assert_eq!(read(&[(0, 4), (4, 6)]), Ok(2));
    for bad in [&[(0, 11)], &[(11, 0)], &[(0, 0)], [(4, 4), (3, 1)].as_slice(), &[(0, 4), (u64::MAX, 2)]] {
        assert_eq!(read(bad), Err(io::ErrorKind::InvalidData), "{bad:?}");
    }
}

#[test]
fn g5_content_without_a_file_false_totals_and_endless_padding_are_refused() {
    let stream = |records: &[Record]| {
        let mut out = Vec::new();
        for record in records {
            let mut body = Vec::new();
            record.put(&mut body);
            u32::try_from(body.len()).unwrap().put(&mut out);
            out.extend(body);
        }
        read_files(&out).map_err(|error| error.kind())
    };
    let first = || Record::Head { mark: MARK, head: head() };
    let end = |entries| Record::End { totals: Totals { entries, bytes: 0 } };
    let bad = Err(io::ErrorKind::InvalidData);
    assert_eq!(stream(&[first(), end(0)]), Ok(vec![]));
    assert_eq!(stream(&[first(), end(1)]), bad);
    assert_eq!(stream(&[end(0)]), bad);
    assert_eq!(stream(&[first(), first()]), bad);
    assert_eq!(stream(&[first(), Record::Data { offset: 0, length: 1 }]), bad);
    let folder = Record::Entry { entry: entry(b"a", Kind::Dir {}) };
    assert_eq!(stream(&[first(), folder, Record::Data { offset: 0, length: 1 }]), bad);
    assert_eq!(stream(&[first(), Record::Pad { length: u32::MAX }]), bad);
    let padding = || Record::Pad { length: 0 };
    assert_eq!(stream(&[first(), padding(), padding(), end(0)]), bad, "it could go on for ever");
}
