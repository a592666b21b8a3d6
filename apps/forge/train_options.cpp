#include "apps/forge/train_options.h"

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>

#include "apps/forge/cli.h"
#include "apps/forge/update_flags.h"
#include "forge/base/error.h"
#include "forge/rules/registry.h"
#include "forge/torch/device_kernels.h"

namespace forge::app {
namespace {

constexpr std::int64_t kLongestWarmup = 20;  // where none is given

// Rules that forge train cannot serve: SophiaG wants gradients of labels that are sampled from the model, Schedule-Free
// other weights for evaluation than for training, and Muon is for matrices alone.
constexpr const char* kUnfit[] = {"sophiag", "schedulefreeadamw", "schedulefreesgd", "muon"};

std::map<std::string, std::string> rules() {
  std::map<std::string, std::string> all = choices_of_rules();
  for (const char* name : kUnfit) all.erase(name);
  return all;
}

const std::map<std::string, Schedule> kSchedules = {{"at_step", Schedule::at_step},
                                                    {"in_backward", Schedule::in_backward}};

std::string preset_help() {
  std::string help = "Shape to start from";
  for (const Preset& preset : presets()) help += std::string("; ") + preset.name + ": " + preset.about;
  return help;
}

void add_model_options(CLI::App& app, TrainOptions& o) {
  const auto add = [&](const char* flag, auto& value, const char* help) {
    return app.add_option(flag, value, help)->group("Model");
  };
  app.add_option("--preset", o.shape.preset, preset_help())->group("Model");
  add("--hidden", o.shape.hidden, "Width; without the flags below, heads of 64 and an --intermediate of 8/3 follow")
      ->check(positive());
  add("--intermediate", o.shape.intermediate, "Width of the feed-forward part")->check(positive());
  add("--layers", o.shape.layers, "Layers")->check(positive());
  add("--heads", o.shape.heads, "Attention heads; must divide --hidden")->check(positive());
  add("--kv-heads", o.shape.kv_heads, "Key-value heads; must divide --heads (default: as many)")->check(positive());
  add("--rope-theta", o.shape.rope_theta, "Base of the rotary positions")->check(positive());
  add("--norm-eps", o.shape.norm_eps, "Epsilon of the norms")->check(positive());
  app.add_flag("--tied", o.shape.tied, "The embedding's matrix is the head's too")->group("Model");
  add("--init", o.init,
      "Start from this Hugging Face directory's shape and weights instead; its tokenizer.model is "
      "used where --tokenizer is absent");
}

void add_loop_options(CLI::App& app, TrainOptions& o) {
  const auto add = [&](const char* flag, auto& value, const char* help) {
    return app.add_option(flag, value, help)->group("Training");
  };
  add("--steps", o.steps, "Updates")->check(positive());
  add("--batch", o.batch, "Windows in a micro-batch")->check(positive());
  add("--seq", o.seq, "Tokens in a window")->check(positive());
  add("--accumulation", o.trainer.accumulation, "Micro-batches in an update; their losses are averaged")
      ->check(positive());
  app.add_flag("--no-shuffle", o.no_shuffle,
               "Visit the windows in file order, not in one drawn from --seed for each "
               "epoch")
      ->group("Training");
  add("--seed", o.seed, "Seed of weights, order and sampling; the same seed gives the same bits");
  add("--device", o.device, "Where weights and state are, and steps are computed: cpu, cuda, cuda:1, …");
  add_threads(app)->group("Training");
}

// Options that are no flags: the learning rate is the schedule's, nobody wants the highest loss, and MARS without its
// approximation needs the gradient of the last batch's weights on this one.
constexpr const char* kNoFlags[] = {"lr", "maximize", "is_approx"};

// An option's name → the optimizers that have it, with its initial value there.
std::map<std::string, std::vector<std::pair<std::string, OptionInfo>>> rule_flags() {
  std::map<std::string, std::vector<std::pair<std::string, OptionInfo>>> all;
  for (const auto& [rule, unused] : rules())
    for (const OptionInfo& option : find_optimizer(rule).options)
      if (const std::string name = option.field.name; std::ranges::find(kNoFlags, name) == std::end(kNoFlags))
        all[name].emplace_back(rule, option);
  return all;
}

using Owners = std::vector<std::pair<std::string, OptionInfo>>;

// What is on unless told otherwise is told otherwise by --no-….
bool is_flag(const OptionInfo& option) { return option.kind == OptionKind::flag; }
bool is_on(const Owners& owners) { return is_flag(owners.front().second) && owners.front().second.initial == 1; }

std::string flag_of(std::string option, const Owners& owners) {
  std::ranges::replace(option, '_', '-');
  return (is_on(owners) ? "--no-" : "--") + option;
}

std::string text_of(double x) {
  std::ostringstream text;
  text << x;
  return text.str();
}

// "adamw (default: 0.1), sgd (0), …"
std::string help_of(const std::string& name, const Owners& owners) {
  std::string help = name == "weight_decay" ? "Acts on matrices, never on norms. " : "";
  for (const auto& [rule, option] : owners) {
    help += (&rule == &owners.front().first ? "Of " : ", ") + rule;
    double initial = option.initial;
    if (rule == "adamw") {
      const RuleValues ours = TrainerOptions().values;
      if (auto found = ours.find(option.field.name); found != ours.end()) initial = found->second;
    }
    if (!is_flag(option)) help += " (" + text_of(initial) + ")";
  }
  return help;
}

void add_rule_flag(CLI::App& app, RuleValues& values, const std::string& name, const Owners& owners) {
  const std::string name_of_flag = flag_of(name, owners);
  const auto set = [&values, name](double x) { values[name] = x; };
  CLI::Option* flag = is_flag(owners.front().second)
                          ? app.add_flag_callback(
                                name_of_flag, [set, off = is_on(owners)] { set(off ? 0 : 1); }, help_of(name, owners))
                          : app.add_option_function<double>(name_of_flag, set, help_of(name, owners));
  flag->group("Optimizer's own");
}

void add_optimizer_options(CLI::App& app, TrainOptions& o) {
  const auto add = [&](const char* flag, auto& value, const char* help) {
    return app.add_option(flag, value, help)->group("Optimizer");
  };
  add_choice(app, "--optimizer", o.trainer.rule, rules(), "adamw", "Update rule")->group("Optimizer");
  add("--lr", o.lr, "Highest learning rate")->check(not_negative());
  add("--warmup", o.warmup, "Steps in which the learning rate rises (default: a tenth of --steps, at most 20)")
      ->check(not_negative());
  add("--min-lr", o.min_lr,
      "Learning rate at the end of the cosine (default: a tenth of --lr; equal to --lr: constant)")
      ->check(not_negative());
  add("--clip", o.clip, "Largest norm of the whole gradient; 0 for none (default: 1 with at_step, 0 with in_backward)")
      ->check(not_negative());
  for (const auto& [name, owners] : rule_flags()) add_rule_flag(app, o.values, name, owners);
}

void add_gradient_options(CLI::App& app, TrainOptions& o) {
  const char* group = "Gradient and numbers";
  add_choice(app, "--schedule", o.trainer.optimizer.schedule, kSchedules, "at_step",
             "When weights are updated: after backward with everything that training usually does, or inside it with "
             "the least memory (no clipping, no accumulation)")
      ->group(group);
  app.add_flag("--no-fuse", o.no_fuse,
               "Ordinary training in two phases: every gradient is multiplied out and kept until the step")
      ->group(group);
  app.add_flag("--exact", o.trainer.optimizer.exact, "The same bits as --no-fuse, clipped or not; slower norms")
      ->group(group);
  add_choice(app, "--weights", o.weights, choices_of_formats(&FormatInfo::for_weights), "fp32",
             "Format of weights; with any but fp32, activations are bf16")
      ->group(group);
  add_choice(app, "--state", o.state, choices_of_formats(&FormatInfo::for_moments), "fp32",
             "Format of the optimizer's moments")
      ->group(group);
  app.add_flag("--count-rounding", o.trainer.optimizer.count_rounding,
               "Say how many updates of weights and moments rounding loses, and how many saturate; slower updates")
      ->group(group);
}

void add_output_options(CLI::App& app, TrainOptions& o) {
  const auto add = [&](const char* flag, auto& value, const char* help) {
    return app.add_option(flag, value, help)->group("Output");
  };
  add("--out", o.out, "Folder for the trained model, as Hugging Face's transformers read it")->required();
  app.add_flag("--force", o.force, "Replace the model in an --out that is not empty")->group("Output");
  add("--log", o.log, "File for the run as JSON lines");
  add("--sample", o.prompt, "Generate text from this prompt at the end");
  add("--sample-tokens", o.sample.tokens, "Tokens to generate")->check(positive());
  add("--temperature", o.sample.temperature, "Freedom in choosing them; 0 takes the likeliest")->check(not_negative());
}

// Flags that only mean something beside another one.
void refuse_strangers(const CLI::App& app, std::initializer_list<const char*> flags, const std::string& why) {
  for (const char* flag : flags) check(app.count(flag) == 0, flag, ": ", why);
}

// Flags of the rule that is used; every other is refused with the rules that have it.
void settle_rule(TrainOptions& o) {
  if (o.trainer.rule != "adamw") o.trainer.values.clear();
  const auto flags = rule_flags();
  for (const auto& [name, value] : o.values) {
    std::string owners;
    bool fits = false;
    for (const auto& [rule, unused] : flags.at(name)) {
      fits = fits || rule == o.trainer.rule;
      owners += (owners.empty() ? "" : ", ") + rule;
    }
    check(fits, flag_of(name, flags.at(name)), ": belongs to --optimizer ", owners, "; leave it out");
    o.trainer.values[name] = value;
  }
}

void check_device(const std::string& name) {
  bool has = false;
  try {
    has = has_kernels(at::Device(name).type());
  } catch (const c10::Error&) {
    fail("--device ", name, ": there is no such device; give cpu or cuda");
  }
  check(has, "--device ", name,
        ": this build has no kernels for it; give cpu, or build where nvcc and a CUDA build of ", "torch are");
}

}  // namespace

void add_data_options(CLI::App& app, DataOptions& o) {
  app.add_option("--data", o.paths, "Text files, and folders whose text files are all taken")
      ->required()
      ->group("Data");
  app.add_option("--max-bytes", o.max_bytes, "Stop before the file that would go above this many bytes (0: no limit)")
      ->check(not_negative())
      ->group("Data");
  app.add_option("--tokenizer", o.tokenizer,
                 "A SentencePiece model, or `bytes`; without it, a byte-pair encoding is trained on the data")
      ->group("Data");
  app.add_option("--vocab-size", o.vocab_size,
                 "Pieces of a trained tokenizer (default: 4096); with --tokenizer, rows of the embedding")
      ->check(positive())
      ->group("Data");
}

void add_train_options(CLI::App& app, TrainOptions& o) {
  add_data_options(app, o.data);
  add_model_options(app, o);
  add_loop_options(app, o);
  add_optimizer_options(app, o);
  add_gradient_options(app, o);
  add_output_options(app, o);
}

void settle(const CLI::App& app, TrainOptions& o) {
  if (!o.init.empty()) {
    refuse_strangers(app,
                     {"--preset", "--hidden", "--intermediate", "--layers", "--heads", "--kv-heads", "--rope-theta",
                      "--norm-eps", "--tied", "--vocab-size"},
                     "the shape is that of --init; leave this flag or --init out");
  }
  settle_rule(o);
  check_device(o.device);
  check(o.warmup.value_or(0) <= o.steps, "--warmup ", o.warmup.value_or(0), " is longer than --steps ", o.steps,
        "; give fewer");
  check(o.min_lr.value_or(0) <= o.lr, "--min-lr ", o.min_lr.value_or(0), " is above --lr ", o.lr, "; give less");
  o.trainer.clip = o.clip.value_or(o.trainer.optimizer.schedule == Schedule::at_step ? 1 : 0);
  o.trainer.optimizer.state_format = o.state;
  if (o.weights != Format::fp32) o.trainer.optimizer.weight_format = o.weights;
  o.trainer.optimizer.seed = o.seed;
  if (o.no_fuse) o.trainer.optimizer.collapse = Collapse::always;
  o.sample.seed = o.seed;
  validate(o.trainer);
}

LearningRate TrainOptions::learning_rate() const {
  const std::int64_t rise = warmup.value_or(std::min(steps / 10, kLongestWarmup));
  return {.peak = lr, .floor = min_lr.value_or(lr / 10), .warmup = rise, .steps = steps};
}

}  // namespace forge::app
