//! The base image, compressed as outputs are: made once, while the first guest boots, and kept in the cache. A conversion
//! then has to compress only what the build has changed.
//!
//! It only saves time: without a twin everything is compressed, and the bytes are the same.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::context::{BuildContext, ScratchError};
use crate::disk::chain::{Chain, ChainFile};
use crate::disk::write::WriteError;
use crate::disk::write_qcow2::{TwinReader, write_qcow2, zstd_version};
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

use super::step_cache::unusable;

/// Name of the twin's file in the scratch folder.
const FILE: &str = "base.qcow2";

/// The twin of the base image, which is made in the background.
pub(crate) struct BaseTwin {
    made: oneshot::Receiver<(TwinReader, Option<Stack>)>,
    /// Keeps the layer that contains the twin in use.
    used: Option<Stack>,
    thread: Option<JoinHandle<()>>,
    /// Cancels the work, if nobody waits for it.
    _guard: DropGuard,
}

impl BaseTwin {
    /// Starts to compress the twin, or to look for it in the cache. Returns `None` for a plan whose outputs do not use it.
    pub(crate) fn begin(build: &BuildContext<'_>, cache: Option<LayerCache>) -> Option<Self> {
        let plan = build.plan;
        if !plan.outputs.disks.iter().any(DiskFile::uses_base_twin) {
            return None;
        }
        let (send, made) = oneshot::channel();
        let cancel = CancellationToken::new();
        let maker = TwinBuilder {
            plan: plan.clone(),
            cache,
            file: build.work.join(FILE),
            events: build.events.clone(),
            cancel: cancel.clone(),
        };
        // A separate thread, since a thread that has lowered its priority cannot raise it again.
        let thread = thread::spawn(move || {
            process::step_back();
            if let Err(failure) = maker.run(send) {
                maker.events.notice(NoticeLevel::Debug, format!("the base is not compressed ahead: {failure}"));
            }
        });
        Some(Self { made, used: None, thread: Some(thread), _guard: cancel.drop_guard() })
    }

    /// Waits for the twin. Returns `None` where it could not be made.
    pub(crate) async fn ready(&mut self) -> Option<TwinReader> {
        let (twin, used) = (&mut self.made).await.ok()?;
        self.used = used;
        Some(twin)
    }

    /// Waits until the twin is in the cache.
    pub(crate) async fn finish(mut self) {
        let thread = self.thread.take();
        // Only a bug makes the thread panic, and then nothing is kept.
        let _ = tokio::task::spawn_blocking(move || thread.map(JoinHandle::join)).await;
    }
}

fn key(plan: &Plan) -> CacheKey {
    let base = &plan.base.sha256;
    CacheKey::root().then(&json!({ "twin": base, "format": format_name(plan.base.format), "codec": zstd_version() }))
}

fn open(path: &Path) -> Result<File, ScratchError> {
    File::open(path).map_err(ScratchError::at("the compressed base", path))
}

struct TwinBuilder {
    plan: Plan,
    cache: Option<LayerCache>,
    file: PathBuf,
    events: Events,
    cancel: CancellationToken,
}

impl TwinBuilder {
    fn run(&self, send: oneshot::Sender<(TwinReader, Option<Stack>)>) -> Result<(), Failure> {
        let base = &self.plan.base;
        let key = key(&self.plan);
        if let Some(twin) = TwinReader::itself(open(&base.file)?, base.format) {
            let _ = send.send((twin, None));
            return Ok(());
        }
        let mut problem = unusable(&self.events);
        let found = self.cache.as_ref().and_then(|cache| cache.find(key, &mut problem).into_iter().next());
        if let Some(stack) = found {
            stack.touch();
            let twin = TwinReader::open(open(&stack.top().disk())?).map_err(WriteError::from)?;
            let _ = send.send((twin, Some(stack)));
            return Ok(());
        }
        let began = Instant::now();
        let chain = Chain::open(vec![ChainFile { file: open(&base.file)?, format: base.format.into() }])?;
        let file = File::create_new(&self.file).map_err(ScratchError::at("the compressed base", &self.file))?;
        // A full disk needs this room for more important files.
        write_qcow2(&chain, Compression::Zstd, None, file, &Progress::unreported(&self.cancel))
            .inspect_err(|_| drop(std::fs::remove_file(&self.file)))?;
        check_base(&self.plan)?;
        let _ = send.send((TwinReader::open(open(&self.file)?).map_err(WriteError::from)?, None));
        let took = began.elapsed();
        self.events.notice(NoticeLevel::Debug, format!("the base was compressed ahead in {:.2} s", took.as_secs_f64()));
        let Some(cache) = &self.cache else { return Ok(()) };
        let kept = cache.draft().and_then(|draft| {
            draft.take_disk(&self.file)?;
            let name = Name::new(key);
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
        Ok(kept.map_err(ScratchError::at("the compressed base", &self.file))?)
    }
}
