//! Trees as this guest takes them and gives them.

use std::collections::BTreeMap;
use std::io;

use kiln::wire::tree::{Decoder, Encoder, Entry, Head, Kind, Layout, Totals, TreeItem};

/// Returns the files of a tree, by their whole paths in the guest.
pub fn unpack(bytes: impl io::BufRead) -> io::Result<(BTreeMap<String, Vec<u8>>, Totals)> {
    let (mut tree, head) = Decoder::new(bytes)?;
    let mut files = BTreeMap::new();
    let mut current = String::new();
    loop {
        match tree.next_item()? {
            TreeItem::Entry(Entry { path, kind, .. }) => {
                current = place(&head, &path);
                if let Kind::File { .. } = kind {
                    files.insert(current.clone(), Vec::new());
                }
            }
            TreeItem::Data { .. } => loop {
                let piece = tree.content()?.to_vec();
                if piece.is_empty() {
                    break;
                }
                tree.consume(piece.len());
                files.entry(current.clone()).or_default().extend(piece);
            },
            TreeItem::Note(_) => {}
            TreeItem::End(totals) => return Ok((files, totals)),
        }
    }
}

fn place(head: &Head, path: &[u8]) -> String {
    let name = if head.into && !head.contents { &head.name[..] } else { b"" };
    let parts = [&head.to[..], name, path].map(String::from_utf8_lossy);
    parts.iter().filter(|part| !part.is_empty()).map(AsRef::as_ref).collect::<Vec<_>>().join("/")
}

/// Packs a folder with an empty file of this name.
pub fn pack_folder(name: &[u8], out: &mut Vec<u8>) -> io::Result<Totals> {
    let head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };
    let mut tree = Encoder::new(out, Layout::Packed, head)?;
    for (path, kind) in [(&b""[..], Kind::Dir {}), (name, Kind::File { size: 0 })] {
        let (path, mtime) = (path.to_vec(), 1_700_000_000_000_000_000);
        tree.entry(Entry { path, mode: 0o755, mtime, xattrs: Vec::new(), kind })?;
    }
    tree.finish()
}

/// Packs a file with this content.
pub fn pack(content: &[u8], out: &mut Vec<u8>) -> io::Result<Totals> {
    let head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };
    let mut tree = Encoder::new(out, Layout::Packed, head)?;
    let kind = Kind::File { size: content.len() as u64 };
    tree.entry(Entry { path: Vec::new(), mode: 0o644, mtime: 1_700_000_000_000_000_000, xattrs: Vec::new(), kind })?;
    if !content.is_empty() {
        tree.data(0, content.len() as u64)?;
        tree.content(content)?;
    }
    tree.finish()
}
