//! The base image, compressed as outputs are: made once, while the first guest boots, and kept in the cache, with the digests
//! of its chunks as conversions learn them. A conversion then has to read, compress and hash only what the build has changed.
//!
//! ```text
//! CACHE/layers/KEY.ID/         the twin
//! CACHE/base-chunks/KEY        the digests (crate::disk::chunk_index; super::base_records)
//! ```
//! They only save time: without them everything is compressed and hashed, and the bytes are the same. A digest is known when
//! a conversion has compared the twin's chunk with the base's.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::context::{BuildContext, BuildOptions, ScratchError};
use crate::disk::base_twin::{PreparedBase, TwinReader};
use crate::disk::chain::{Chain, ChainFile};
use crate::disk::chunk_index::{self, KnownChunks};
use crate::disk::write::WriteError;
use crate::disk::write_qcow2::{write_qcow2, zstd_version};
use crate::error::Failure;
use crate::event::{Events, NoticeLevel};
use crate::layer::{LayerCache, LayerMetadata, Name, Stack};
use crate::plan::Plan;
use crate::plan::key::CacheKey;
use crate::plan::machine::format_name;
use crate::plan::output::DiskFile;
use crate::process;
use crate::progress::Progress;
use crate::resolve::facts::check_base;
use crate::specfile::Compression;

use super::base_records::BaseRecords;
use super::step_cache::unusable;

/// Name of the twin's file in the scratch folder.
const FILE: &str = "base.qcow2";

/// Name of the folder with the digests of bases, in the cache.
const CHUNKS: &str = "base-chunks";
/// The name of the twin of a base that is compressed like an output.
const ITSELF: &str = "itself";

/// The prepared base, and the layer that keeps its twin in use.
type Prepared = (Arc<PreparedBase>, Option<Stack>);

/// The twin of the base image, which is made in the background, and the digests of its chunks.
pub(crate) struct BaseTwin {
    made: oneshot::Receiver<Prepared>,
    events: Events,
    /// The base, and the layer that contains the twin, which is kept in use.
    used: Option<Prepared>,
    /// The digests in the cache.
    chunks: ChunkCache,
    thread: Option<JoinHandle<Option<String>>>,
    /// Cancels the work, if nobody waits for it.
    _guard: DropGuard,
}

impl BaseTwin {
    /// Starts to compress the twin, or to look for it in the cache. Returns `None` for a plan whose outputs do not use it.
    pub(crate) fn begin(build: &BuildContext<'_>, around: &BuildOptions, layers: Option<LayerCache>) -> Option<Self> {
        let plan = build.plan;
        if !plan.outputs.disks.iter().any(DiskFile::uses_base_twin) {
            return None;
        }
        let (send, made) = oneshot::channel();
        let cancel = CancellationToken::new();
        let chunks = ChunkCache::new(plan, (!around.no_cache).then_some(&around.cache));
        let maker = TwinBuilder {
            plan: plan.clone(),
            chunks: chunks.clone(),
            layers,
            file: build.work.join(FILE),
            events: build.events.clone(),
            cancel: cancel.clone(),
        };
        // A separate thread, since a thread that has lowered its priority cannot raise it again.
        let thread = thread::spawn(move || {
            let made = maker.run(send);
            made.unwrap_or_else(|failure| {
                maker.events.notice(NoticeLevel::Debug, format!("the base is not compressed ahead: {failure}"));
                None
            })
        });
        let events = build.events.clone();
        Some(Self { made, events, used: None, chunks, thread: Some(thread), _guard: cancel.drop_guard() })
    }

    /// Waits for the base. Returns `None` where it could not be prepared.
    pub(crate) async fn ready(&mut self) -> Option<Arc<PreparedBase>> {
        let prepared = match self.made.try_recv() {
            Err(TryRecvError::Empty) => {
                let why = "the base image is still being compressed, which is done once for all builds on it";
                self.events.notice(NoticeLevel::Info, why);
                (&mut self.made).await.ok()?
            }
            made => made.ok()?,
        };
        let base = Arc::clone(&prepared.0);
        self.used = Some(prepared);
        Some(base)
    }

    /// Waits until the twin is in the cache, and keeps the digests that the build has learned.
    pub(crate) async fn finish(mut self) {
        let Some(thread) = self.thread.take() else { return };
        let base = self.used.as_ref().map(|(base, _)| Arc::clone(base));
        let chunks = self.chunks.clone();
        let kept = tokio::task::spawn_blocking(move || {
            // Only a bug makes the thread panic, and then nothing is kept.
            let twin = thread.join().ok().flatten();
            twin.zip(base).map_or(Ok(()), |(twin, base)| chunks.keep(&twin, &base.known_chunks()))
        });
        // If the digests are lost, they are computed again.
        let _ = kept.await;
    }
}

fn twin_key(plan: &Plan) -> CacheKey {
    let base = &plan.base.sha256;
    CacheKey::root().then(&json!({ "twin": base, "format": format_name(plan.base.format), "codec": zstd_version() }))
}

fn open(path: &Path) -> Result<File, ScratchError> {
    File::open(path).map_err(ScratchError::at("the compressed base", path))
}

struct TwinBuilder {
    plan: Plan,
    layers: Option<LayerCache>,
    chunks: ChunkCache,
    file: PathBuf,
    events: Events,
    cancel: CancellationToken,
}

impl TwinBuilder {
    /// Sends the base, and returns the name of its twin, if that is in the cache.
    fn run(&self, send: oneshot::Sender<Prepared>) -> Result<Option<String>, Failure> {
        if let Some((twin, used)) = self.find_twin()? {
            let name = used.as_ref().map_or(ITSELF.to_owned(), |stack| stack.top().facts.name.id.clone());
            let chunks = self.chunks.find(&name).unwrap_or_else(|| KnownChunks::new(self.plan.disk_size()));
            let _ = send.send((Arc::new(PreparedBase { twin, chunks: Mutex::new(chunks) }), used));
            return Ok(Some(name));
        }
        process::step_back();
        let began = Instant::now();
        let chunks = Mutex::new(KnownChunks::new(self.plan.disk_size()));
        let base = PreparedBase { twin: self.make()?, chunks };
        let _ = send.send((Arc::new(base), None));
        let took = began.elapsed();
        self.events.notice(NoticeLevel::Debug, format!("the base was compressed ahead in {:.2} s", took.as_secs_f64()));
        self.keep_twin(took)
    }

    /// Returns the twin if it needs not be made: the base itself, or one in the cache.
    fn find_twin(&self) -> Result<Option<(TwinReader, Option<Stack>)>, Failure> {
        let base = &self.plan.base;
        // Others compress in another way, or not at all: with their clusters the bytes of an output would depend on its history.
        let itself = match &base.image {
            Some(image) if image.kiln == env!("CARGO_PKG_VERSION") => {
                TwinReader::itself(open(&base.file)?, base.format)
            }
            _ => None,
        };
        match itself {
            Some(twin) => Ok(Some((twin, None))),
            None => self.cached_twin(),
        }
    }

    /// Returns the twin in the cache.
    fn cached_twin(&self) -> Result<Option<(TwinReader, Option<Stack>)>, Failure> {
        let mut problem = unusable(&self.events);
        let layers = self.layers.as_ref();
        let found = layers.and_then(|layers| layers.find(twin_key(&self.plan), &mut problem).into_iter().next());
        let Some(stack) = found else { return Ok(None) };
        stack.touch();
        let twin = TwinReader::open_cached(open(&stack.top().disk())?).map_err(WriteError::from)?;
        Ok(Some((twin, Some(stack))))
    }

    fn make(&self) -> Result<TwinReader, Failure> {
        let base = &self.plan.base;
        let chain = Chain::open(vec![ChainFile { file: open(&base.file)?, format: base.format.into() }])?;
        let file = File::create_new(&self.file).map_err(ScratchError::at("the compressed base", &self.file))?;
        // A full disk needs this room for more important files.
        write_qcow2(&chain, Compression::Zstd, None, file, &Progress::unreported(&self.cancel))
            .inspect_err(|_| drop(fs::remove_file(&self.file)))?;
        check_base(&self.plan)?;
        Ok(TwinReader::open(open(&self.file)?).map_err(WriteError::from)?)
    }

    /// Moves the twin to the cache, and returns its name there.
    fn keep_twin(&self, took: Duration) -> Result<Option<String>, Failure> {
        let Some(cache) = &self.layers else { return Ok(None) };
        let name = Name::new(twin_key(&self.plan));
        let id = name.id.clone();
        let kept = cache.draft().and_then(|draft| {
            draft.take_disk(&self.file)?;
            draft.commit(LayerMetadata {
                name,
                parent: None,
                seconds: took.as_secs_f64(),
                during: None,
                memory: None,
                fetched: Vec::new(),
                covers: Vec::new(),
            })
        });
        kept.map_err(ScratchError::at("the compressed base", &self.file))?;
        Ok(Some(id))
    }
}

/// The digests of a base in the cache.
#[derive(Clone)]
struct ChunkCache {
    /// `None` if the cache is not used.
    records: Option<BaseRecords>,
    base: CacheKey,
    disk_size: u64,
}

impl ChunkCache {
    fn new(plan: &Plan, cache: Option<&PathBuf>) -> Self {
        let disk_size = plan.disk_size();
        let base = twin_key(plan).then(&json!({ "disk": disk_size }));
        let records = cache.map(|cache| BaseRecords::new(cache.join(CHUNKS), chunk_index::LARGEST));
        Self { records, base, disk_size }
    }

    /// Returns the key for the twin of this name: another twin may be another file.
    fn key(&self, twin: &str) -> CacheKey {
        self.base.then(&json!({ "twin": twin }))
    }

    fn find(&self, twin: &str) -> Option<KnownChunks> {
        let kept = self.records.as_ref()?.find(self.key(twin))?;
        let chunks = KnownChunks::parse(std::str::from_utf8(&kept).ok()?)?;
        (chunks.disk_size() == self.disk_size).then_some(chunks)
    }

    fn keep(&self, twin: &str, chunks: &KnownChunks) -> io::Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        records.keep(self.key(twin), chunks.to_text().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_belong_to_a_twin_and_a_size_of_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let records = Some(BaseRecords::new(folder.path().to_owned(), chunk_index::LARGEST));
        let cache = ChunkCache { records, base: CacheKey::root(), disk_size: 9 << 20 };
        let chunks = KnownChunks::new(9 << 20);
        assert_eq!(cache.find("a"), None);
        cache.keep("a", &chunks).unwrap();
        assert_eq!(cache.find("a").as_ref(), Some(&chunks));
        assert_eq!(cache.find("b"), None, "another twin was not compared with the base");
        let larger = ChunkCache { disk_size: 10 << 20, ..cache.clone() };
        assert_eq!(larger.find("a"), None);
        let unused = ChunkCache { records: None, ..cache };
        unused.keep("a", &chunks).unwrap();
        assert_eq!(unused.find("a"), None);
    }
}
