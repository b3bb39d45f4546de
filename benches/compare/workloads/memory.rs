//! Our daemon's memory under load, read from our own test server, which needs no disk for what it serves.

use crate::Result;
use crate::args::{Link, Server};
use crate::contenders::FileSystem;
use crate::context::Context;
use crate::mounted::Mounted;
use crate::process::{cpu_of, peak_memory_of};
use crate::stage::Stage;

const HUGE: &str = "build-cache/huge/";
const AT_ONCE: &str = "build-cache/at-once/";
/// Beside the files read at once; listed, not read.
const MANY: &str = "build-cache/at-once/many/";
const NAME: &str = "huge-0123456789abcdef.zst";

/// Runs the workload, once: most of it is disk space.
pub fn run(context: &mut Context) -> Result<()> {
    // Its objects take the space that the cache needs now.
    context.end_stage();
    let mut stage = Stage::start(Server::Memory, context.work.path())?;
    let (files, size) = context.scale.at_once;
    stage.server().ask(&format!("sparse {HUGE}{NAME} {} 1", context.scale.huge))?;
    for index in 0..files {
        stage.server().ask(&format!("sparse {AT_ONCE}{} {size} {index}", name(index)))?;
    }
    stage.server().ask(&format!("many {MANY} {}", context.scale.many_names))?;
    for fs in context.file_systems.clone().into_iter().filter(FileSystem::is_ours) {
        context.attempt(fs.name, "memory, one huge file", |context| read_huge(context, &stage, &fs))?;
        context.attempt(fs.name, "memory, many files", |context| read_many(context, &stage, &fs))?;
    }
    Ok(())
}

fn name(index: u64) -> String {
    format!("circuit-{index:016x}.zst")
}

fn read_huge(context: &mut Context, stage: &Stage, fs: &FileSystem) -> Result<()> {
    let mounted = Mounted::new(fs, &context.work, &stage.url(Link::Raw), HUGE)?;
    let outcome = mounted.read(NAME, context.scale.huge)?;
    mounted.wait_until_idle()?;
    context.results.add("memory.huge", None, fs.name, peak_memory_of(mounted.pid())?);
    context.results.add("memory.huge.time", None, fs.name, outcome.seconds());
    context.results.add("memory.huge.cpu", None, fs.name, cpu_of(mounted.pid())?);
    Ok(())
}

fn read_many(context: &mut Context, stage: &Stage, fs: &FileSystem) -> Result<()> {
    let (files, size) = context.scale.at_once;
    let mounted = Mounted::new(fs, &context.work, &stage.url(Link::S3Like), AT_ONCE)?;
    let dir = mounted.path("many");
    let listed = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..files)
            .map(|index| (scope, index))
            .map(|(scope, index)| {
                let mounted = &mounted;
                scope.spawn(move || mounted.read(&name(index), size).map(drop))
            })
            .collect();
        let listed = mounted.task(&[&"names", &dir]);
        readers.into_iter().try_for_each(|reader| reader.join().expect("readers don't panic"))?;
        listed
    })?;
    if listed.count() != context.scale.many_names {
        return Err(format!("{} names instead of {}", listed.count(), context.scale.many_names));
    }
    mounted.wait_until_idle()?;
    context.results.add("memory.many", None, fs.name, peak_memory_of(mounted.pid())?);
    context.results.add("memory.many.cpu", None, fs.name, cpu_of(mounted.pid())?);
    drop(mounted);
    // The listing's own time, with nothing beside it.
    let mounted = Mounted::new(fs, &context.work, &stage.url(Link::S3Like), MANY)?;
    let listed = mounted.task(&[&"names", &mounted.root()])?;
    context.results.add("memory.many.first", Some(Link::S3Like), fs.name, listed.first());
    context.results.add("memory.many.all", Some(Link::S3Like), fs.name, listed.seconds());
    Ok(())
}
