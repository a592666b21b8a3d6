#include "forge/rules/rule.h"

namespace forge {
namespace {

struct Interval {
  bool (*holds)(double);
  const char* words;
};

// By Bounds. A NaN is in none.
constexpr Interval kIntervals[] = {
    {[](double) { return true; }, "any number"},
    {[](double x) { return x >= 0; }, "0 or more"},
    {[](double x) { return x <= 0; }, "0 or less"},
    {[](double x) { return x > 0; }, "more than 0"},
    {[](double x) { return x >= 0 && x < 1; }, "a value in [0, 1)"},
    {[](double x) { return x >= 0 && x <= 1; }, "a value in [0, 1]"},
    {[](double x) { return x > 0 && x < 1; }, "a value in (0, 1)"},
    {[](double x) { return x >= 1; }, "1 or more"},
    {[](double x) { return x > 1; }, "more than 1"},
};

}  // namespace

void check_bounds(const char* who, const Field& field, double value) {
  const Interval& interval = kIntervals[static_cast<int>(field.bounds)];
  check(interval.holds(value), who, ": ", field.name, " is ", value, "; give ", interval.words);
}

}  // namespace forge
