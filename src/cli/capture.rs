use super::args;
use super::device::on_device;
use super::failure::Failure;
use super::output;
use crate::backend::layers::Layers;
use crate::calibration::{self, Capture, Writer};
use crate::checkpoint::fingerprint;
use crate::data::{Error, ModelSource, Proxies, synthetic};
use crate::model::Samples;
use std::time::Instant;

/// `esmerge capture`
pub(super) fn run(args: &args::Capture) -> Result<(), Failure> {
    calibration::Writer::check(&args.out, args.force)?;
    let model = args.run.download().model(&args.model)?;
    let (device, note) = args.run.device.open()?;
    note.iter().for_each(|note| output::warning(note));
    on_device!(&device, |backend| pollster::block_on(capture(backend, &model, args)))
}

async fn capture<B: Layers>(backend: &B, source: &ModelSource, args: &args::Capture) -> Result<(), Failure> {
    let started = Instant::now();
    let model = source.model(backend)?;
    let samples = samples(args, source, model.inputs())?;
    let count = samples.len();
    let mut writer = Writer::create(&args.out, args.f16)?;
    if let Some(left) = writer.left().filter(|_| !args.run.quiet) {
        output::warning(&left.to_string());
    }
    let failed = Error::model(source.path());
    let mut capture = Capture::new(backend, model, &samples, args.max_size).map_err(&failed)?;
    drop(samples); // embedded, they are on the device
    let (mut tokens, mut grams) = (0, 0);
    while capture.next_index() < capture.blocks() {
        if !args.run.quiet {
            output::say(&format!("block {} of {}", capture.next_index() + 1, capture.blocks()));
        }
        for layer in capture.next_block(|_| true).await.map_err(&failed)? {
            writer.add(&layer.weight, &layer.entry, &layer.sharing)?;
            tokens = layer.entry.tokens;
            grams += usize::from(layer.entry.gram.is_some());
        }
    }
    let layers = writer.weights().count();
    let fingerprint = own_fingerprint(source, &writer)?;
    writer.finish(count, fingerprint.as_deref())?;
    if !args.run.quiet {
        let form = match grams {
            0 => String::new(),
            n => format!(", {n} of them as Gram matrices because of --max-size"),
        };
        output::print(&format!(
            "{}: inputs of {layers} weights{form} over {tokens} tokens of {} samples, in {:.1} s on {}",
            args.out.display(),
            count,
            started.elapsed().as_secs_f64(),
            backend.name()
        ));
    }
    Ok(())
}

fn samples(
    args: &args::Capture,
    source: &ModelSource,
    inputs: crate::model::InputKind,
) -> Result<Samples, Error> {
    let count = args.samples as usize;
    match &args.data {
        None => synthetic(inputs, count, args.seed).map_err(Error::model(source.path())),
        Some(data) => {
            let max_length = args.max_length.map(|n| n as usize);
            Proxies { samples: count, seed: args.seed, max_length }.read(data, source, inputs)
        }
    }
}

/// Of the weights covered, if the expert's own file has them all (deltas may lack some).
fn own_fingerprint(source: &ModelSource, writer: &Writer) -> Result<Option<String>, calibration::Error> {
    let own = source.own_weights();
    if writer.weights().any(|w| own.get(w).is_none()) {
        return Ok(None);
    }
    Ok(Some(fingerprint(own, writer.weights())?))
}
