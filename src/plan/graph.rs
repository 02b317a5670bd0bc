//! The graph of specs and their base images: parents first, cycles reported. A spec has one base image, so every graph is a
//! forest.
//!
//! ```text
//! [base] spec = "../base"        an edge; a spec that nobody asked for is added
//! [base] image = "base@1"        an edge, if a spec of the graph makes that image
//! ```

use std::collections::BTreeMap;
use std::fs::canonicalize;
use std::path::{Path, PathBuf};

use crate::error::{Fault, Kind};
use crate::project::FileReach;
use crate::specfile::{BaseSource, LoadError, Overrides, Spec, SpecFile, spec_file};

/// A spec and its place in the graph.
#[derive(Debug, Clone)]
pub struct SpecNode {
    /// The spec to build.
    pub spec: Spec,
    /// The node whose image this one is built on; always an earlier node.
    pub parent: Option<usize>,
    /// Whether the user asked for it; otherwise it was added as a base.
    pub wanted: bool,
    /// The number of images in the longest chain that is built on it.
    pub height: usize,
}

impl SpecNode {
    /// Returns the image's `name@version`.
    pub fn id(&self) -> String {
        id(&self.spec)
    }
}

fn id(spec: &Spec) -> String {
    format!("{}@{}", spec.image.name, spec.image.version)
}

/// Specs in an order in which they can be built.
#[derive(Debug, Clone)]
pub struct Graph(Vec<SpecNode>);

/// The reason why specs form no graph.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// A spec is built on itself, directly or through others.
    #[error("these specs are built on each other in a circle: {}", .0.join(" is built on "))]
    Cycle(Vec<String>),
    /// Two specs produce the same version.
    #[error("{} and {} both make {id}", one.display(), other.display())]
    Twice {
        /// The version, `name@version`.
        id: String,
        one: PathBuf,
        other: PathBuf,
    },
    /// Several specs make an image of the name that a base is given by. Which version is meant would depend on which is
    /// built first.
    #[error("the base image of {}: several of the specs make an image `{name}`", of.display())]
    Ambiguous {
        of: PathBuf,
        /// Name of the image.
        name: String,
    },
    /// The spec of a base image is not valid, or is outside of the project.
    #[error("the base image of {}: {source}", of.display())]
    Base {
        of: PathBuf,
        /// The error in the base image's spec.
        source: Box<LoadError>,
    },
}

impl Fault for GraphError {
    fn kind(&self) -> Kind {
        Kind::Spec
    }

    fn hints(&self) -> Vec<String> {
        match self {
            GraphError::Twice { .. } => vec!["give one of them another name or version".into()],
            GraphError::Base { source, .. } => source.hints(),
            GraphError::Ambiguous { name, .. } => vec![format!("say which: `image = \"{name}@VERSION\"`")],
            GraphError::Cycle(_) => Vec::new(),
        }
    }
}

/// The identity of a spec: its file, with links followed, and its variant.
type Key = (PathBuf, Option<String>);

fn key(file: &Path, variant: Option<&str>) -> Key {
    let file = spec_file(file);
    (canonicalize(&file).unwrap_or(file), variant.map(str::to_owned))
}

impl Graph {
    /// Builds the graph of these specs and of those they are built on, which are read here. A spec that is given twice
    /// counts once.
    ///
    /// # Errors
    /// When there is a cycle, when two specs produce the same version, or when the spec of a base cannot be read or, unless
    /// `reach` allows it, is outside of the project of the spec that names it.
    pub fn new(specs: Vec<Spec>, reach: FileReach) -> Result<Self, GraphError> {
        let mut known: BTreeMap<Key, usize> = BTreeMap::new();
        let mut found: Vec<SpecNode> = Vec::new();
        for spec in specs {
            let key = key(&spec.path, spec.variant.as_deref());
            known.entry(key).or_insert_with(|| {
                found.push(SpecNode { spec, parent: None, wanted: true, height: 0 });
                found.len() - 1
            });
        }
        let mut next = 0;
        while let Some(SpecNode { spec, .. }) = found.get(next) {
            if let BaseSource::Spec { file, variant } = &spec.base.source {
                let key = key(file, variant.as_deref());
                let parent = if let Some(parent) = known.get(&key) {
                    *parent
                } else {
                    let base = load_base(spec, file, variant.clone(), reach)?;
                    found.push(SpecNode { spec: base, parent: None, wanted: false, height: 0 });
                    known.insert(key, found.len() - 1);
                    found.len() - 1
                };
                found[next].parent = Some(parent);
            }
            next += 1;
        }
        check_names(&found)?;
        by_image(&mut found)?;
        sorted(found).map(Self)
    }

    /// Returns the nodes, parents first.
    pub fn nodes(&self) -> &[SpecNode] {
        &self.0
    }
}

fn load_base(of: &Spec, file: &Path, variant: Option<String>, reach: FileReach) -> Result<Spec, GraphError> {
    let overrides = Overrides { variant, ..Overrides::default() };
    let base = SpecFile::read_base(file, &of.path, reach).and_then(|file| Ok(file.parse(&overrides)?));
    base.map_err(|source| GraphError::Base { of: of.path.clone(), source: Box::new(source) })
}

fn check_names(found: &[SpecNode]) -> Result<(), GraphError> {
    let mut names: BTreeMap<String, &Spec> = BTreeMap::new();
    for SpecNode { spec, .. } in found {
        if let Some(other) = names.insert(id(spec), spec) {
            return Err(GraphError::Twice { id: id(spec), one: other.path.clone(), other: spec.path.clone() });
        }
    }
    Ok(())
}

/// Adds edges to images of the store that this graph makes: those named by their version, or by a name alone, which means
/// the newest. Tags are left out, since only the store knows which version a tag names.
///
/// # Errors
/// When several specs make the image that is named.
fn by_image(found: &mut [SpecNode]) -> Result<(), GraphError> {
    for index in 0..found.len() {
        let spec = &found[index].spec;
        let BaseSource::Image(wanted) = &spec.base.source else { continue };
        let mut makers = (0..found.len()).filter(|maker| makes(&found[*maker].spec, wanted));
        let maker = makers.next();
        if makers.next().is_some() {
            return Err(GraphError::Ambiguous { of: spec.path.clone(), name: wanted.clone() });
        }
        found[index].parent = maker;
    }
    Ok(())
}

fn makes(spec: &Spec, wanted: &str) -> bool {
    wanted == id(spec) || wanted == spec.image.name
}

/// Sorts the specs: parents first, otherwise in the order given.
fn sorted(found: Vec<SpecNode>) -> Result<Vec<SpecNode>, GraphError> {
    let mut order = Vec::with_capacity(found.len());
    let mut place = vec![None; found.len()];
    let mut height = vec![0; found.len()];
    for index in 0..found.len() {
        // The chain from this node down to its deepest base.
        let mut line = vec![index];
        while let Some(parent) = found[line[line.len() - 1]].parent {
            if let Some(at) = line.iter().position(|node| *node == parent) {
                let circle = line[at..].iter().chain([&parent]);
                return Err(GraphError::Cycle(
                    circle.map(|node| found[*node].spec.path.display().to_string()).collect(),
                ));
            }
            line.push(parent);
        }
        for (above, node) in line.iter().enumerate() {
            height[*node] = height[*node].max(above);
        }
        for node in line.into_iter().rev() {
            if place[node].is_none() {
                place[node] = Some(order.len());
                order.push(node);
            }
        }
    }
    let mut found: Vec<_> = found.into_iter().map(Some).collect();
    let nodes = order.into_iter().filter_map(|index| {
        let node = found[index].take()?;
        Some(SpecNode { parent: node.parent.and_then(|parent| place[parent]), height: height[index], ..node })
    });
    Ok(nodes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(folder: &Path, name: &str, base: &str) -> PathBuf {
        let path = folder.join(name);
        fs::create_dir_all(&path).unwrap();
        let text = format!("[image]\nname = '{name}'\nversion = '1'\n[base]\n{base}\n");
        fs::write(path.join("kiln.toml"), text).unwrap();
        path
    }

    fn graph(specs: &[PathBuf]) -> Result<Graph, GraphError> {
        let load = |path: &PathBuf| Spec::load(path, FileReach::Host, &Overrides::default()).unwrap();
        Graph::new(specs.iter().map(load).collect(), FileReach::Host)
    }

    fn names(graph: &Graph) -> Vec<(&str, Option<usize>, usize, bool)> {
        let facts = |node: &'_ SpecNode| (node.parent, node.height, node.wanted);
        let names = graph.nodes().iter().map(|node| (node.spec.image.name.as_str(), facts(node)));
        names.map(|(name, (parent, height, wanted))| (name, parent, height, wanted)).collect()
    }

    #[test]
    fn parents_come_first_and_are_added_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "root", "file = 'disk.qcow2'");
        write(at, "middle", "spec = '../root'");
        let one = write(at, "one", "spec = '../middle/kiln.toml'");
        let two = write(at, "two", "spec = '../x/../middle'");
        fs::create_dir(at.join("x")).unwrap();
        let by_name = write(at, "by-name", "image = 'one@1'");
        let tagged = write(at, "tagged", "image = 'one@stable'");
        let graph = graph(&[by_name, two, one.clone(), tagged, one]).unwrap();
        assert_eq!(
            names(&graph),
            [
                ("root", None, 3, false),
                ("middle", Some(0), 2, false),
                ("one", Some(1), 1, true),
                ("by-name", Some(2), 0, true),
                ("two", Some(1), 0, true),
                ("tagged", None, 0, true),
            ]
        );
    }

    #[test]
    fn s4_a_circle_is_told_with_all_its_specs() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a", "spec = '../b'");
        write(folder.path(), "b", "spec = '../c'");
        write(folder.path(), "c", "spec = '../b'");
        let error = graph(&[folder.path().join("a")]).unwrap_err();
        let GraphError::Cycle(circle) = &error else { panic!("{error}") };
        let names: Vec<_> = circle.iter().map(|path| path.rsplit('/').nth(1).unwrap()).collect();
        assert_eq!((names, error.kind().exit_code()), (vec!["b", "c", "b"], 3));
        let itself = write(folder.path(), "self", "image = 'self'");
        assert!(matches!(graph(&[itself]), Err(GraphError::Cycle(_))));
    }

    #[test]
    fn one_version_is_made_by_one_spec() {
        let folder = tempfile::tempdir().unwrap();
        let one = write(folder.path(), "one", "file = 'disk.qcow2'");
        let other = folder.path().join("other.toml");
        fs::copy(one.join("kiln.toml"), &other).unwrap();
        assert!(matches!(graph(&[one, other]), Err(GraphError::Twice { id, .. }) if id == "one@1"));
    }

    #[test]
    fn a_name_that_several_specs_make_is_ambiguous() {
        let folder = tempfile::tempdir().unwrap();
        let one = write(folder.path(), "base", "file = 'disk.qcow2'");
        let other = folder.path().join("other.toml");
        let text = fs::read_to_string(one.join("kiln.toml")).unwrap();
        fs::write(&other, text.replace("version = '1'", "version = '2'")).unwrap();
        let by_name = write(folder.path(), "child", "image = 'base'");
        let by_version = write(folder.path(), "heir", "image = 'base@2'");
        let error = graph(&[one.clone(), other.clone(), by_name]).unwrap_err();
        assert!(matches!(&error, GraphError::Ambiguous { name, .. } if name == "base"), "{error}");
        assert_eq!(graph(&[one, other, by_version]).unwrap().nodes()[2].parent, Some(1));
    }

    #[test]
    fn a_base_that_cannot_be_read_is_told_with_who_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let one = write(folder.path(), "one", "spec = '../nowhere'");
        let error = graph(&[one]).unwrap_err();
        assert!(error.to_string().starts_with("the base image of "), "{error}");
    }
}
