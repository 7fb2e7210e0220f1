// Compares the CPU kernels with double precision on random calls; made for sanitizers.
//
//   check_conv [--seed S] [--calls N] [--keep-going] [--verbose] [sabotage]
//   check_conv --time
//
// Call i is drawn from seed S + i alone, so `--seed` with the seed of a failure repeats that call.
// --time prints how much slower denormal numbers are. DASR_OPS_CPU_ISA chooses the instruction set.
// Sabotage, to see that mistakes are noticed: --shorten TENSOR, --wrong-reference,
// --thread-dependent, --overlapping-pool.
#include <cmath>
#include <cstdio>

#include "checks.h"
#include "cpu/kernels/isa.h"
#include "denormals.h"

// In the runtimes of the sanitizers.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

struct Options {
  uint64_t seed = 0;
  int64_t calls = 1;
  bool keep_going = false;
  bool verbose = false;
  bool time = false;
  Sabotage sabotage;
};

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--seed") {
      options.seed = std::strtoull(value, nullptr, 10), ++i;
    } else if (name == "--calls") {
      options.calls = std::strtoll(value, nullptr, 10), ++i;
    } else if (name == "--shorten") {
      options.sabotage.shorten = value, ++i;
    } else if (name == "--keep-going") {
      options.keep_going = true;
    } else if (name == "--verbose") {
      options.verbose = true;
    } else if (name == "--time") {
      options.time = true;
    } else if (name == "--wrong-reference") {
      options.sabotage.wrong_reference = true;
    } else if (name == "--thread-dependent") {
      options.sabotage.thread_dependent = true;
    } else if (name == "--overlapping-pool") {
      options.sabotage.overlapping_pool = true;
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return false;
    }
  }
  return true;
}

// Where a sanitizer ends the program, this says in which call.
const Call* running = nullptr;

void say_what_runs() {
  if (running != nullptr) {
    std::fprintf(stderr, "DIED in %s\n", running->description.c_str());
  }
}

void spoil(Random& random, Array<float>& array) {
  const float inf = std::numeric_limits<float>::infinity();
  const float values[] = {std::nanf(""), inf, -inf};
  for (int64_t i = random.between(1, 3); i > 0 && array.size() > 0; --i) {
    array.get()[random.below(array.size())] = values[random.below(3)];
  }
}

// Spoils the call's input, then the gradient of its output.
std::string check_not_finite(Call& call, const Sabotage& sabotage) {
  Random random(call.seed + 1);
  const bool grad_input = call.grad_input;
  call.grad_input = call.grad_weight = call.grad_routing = call.grad_bias = false;
  spoil(random, call.input);
  const std::string wrong = check_not_finite_output(call, run(call, Threads::kOne, sabotage),
                                                    compute_reference(call, sabotage));
  call.grad_input = grad_input;
  if (!wrong.empty() || !grad_input) {
    return wrong;
  }
  spoil(random, call.grad_output);
  return check_not_finite_grad_input(call, run(call, Threads::kOne, sabotage),
                                     compute_reference(call, sabotage));
}

std::string check(Call& call, const Sabotage& sabotage, Worst& worst) {
  if (!dasr::cpu::conv_supported(call.params)) {
    return "conv_supported says no";
  }
  const Results results = run(call, Threads::kOne, sabotage);
  std::string wrong = check_same_bits(results, run(call, Threads::kThree, sabotage));
  if (wrong.empty()) {
    wrong = check_values(call, results, compute_reference(call, sabotage), worst);
  }
  return wrong.empty() && call.seed % 4 == 0 ? check_not_finite(call, sabotage) : wrong;
}

int check_all(const Options& options) {
  Worst worst;
  int64_t failures = 0;
  for (int64_t i = 0; i < options.calls && (failures == 0 || options.keep_going); ++i) {
    Call call(options.seed + static_cast<uint64_t>(i), options.sabotage);
    running = &call;
    if (options.verbose) {
      std::fprintf(stderr, "%s\n", call.description.c_str());
    }
    const std::string wrong = check(call, options.sabotage, worst);
    running = nullptr;
    if (!wrong.empty()) {
      ++failures;
      std::printf("FAILED %s\n  %s\n", call.description.c_str(), wrong.c_str());
    }
  }
  const auto print = [](const char* name, const Worst::Error& error) {
    std::printf(" %s %.2f (seed %llu)", name, error.value,
                static_cast<unsigned long long>(error.seed));
  };
  std::printf("%s: %lld failures; largest errors as parts of the bars:",
              dasr::cpu::isa_name(dasr::cpu::isa_choice().isa), static_cast<long long>(failures));
  print("output", worst.output);
  print("and precise output", worst.precise);
  print("and gradient", worst.gradient);
  std::printf("\n");
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    return 2;
  }
  if (const char* error = dasr::cpu::isa_choice().error) {
    std::fprintf(stderr, "%s\n", error);
    return 3;
  }
  if (__sanitizer_set_death_callback != nullptr) {
    __sanitizer_set_death_callback(say_what_runs);
  }
  return options.time ? time_denormals() : check_all(options);
}
