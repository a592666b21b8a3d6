#pragma once

// The value type of rules and formats (base/scalar.h has the words) over one vector register of the instruction set
// that isa.h chose. Included inside the target region.
namespace forge::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

struct LanePair;

struct Lanes {
  using D = hn::ScalableTag<float>;
  using U = hn::RebindToUnsigned<D>;
  using I = hn::RebindToSigned<D>;
  using Half = hn::Rebind<std::uint16_t, D>;
  static constexpr int kLanes = HWY_LANES(float);

  struct Bits {
    hn::Vec<U> u;
    Bits() = default;
    HWY_INLINE explicit Bits(hn::Vec<U> v) : u(v) {}
    HWY_INLINE explicit Bits(std::uint32_t value) : u(hn::Set(U(), value)) {}
    static HWY_INLINE Bits load_upper16(const std::uint16_t* p) {
      return Bits(hn::ShiftLeft<16>(hn::PromoteTo(U(), hn::LoadU(Half(), p))));
    }
    static HWY_INLINE Bits load_lower16(const std::uint16_t* p) {
      return Bits(hn::PromoteTo(U(), hn::LoadU(Half(), p)));
    }
    static HWY_INLINE Bits load_int16(const std::int16_t* p) {
      const hn::Rebind<std::int16_t, D> d;
      return Bits(hn::BitCast(U(), hn::PromoteTo(I(), hn::LoadU(d, p))));
    }
    static HWY_INLINE Bits load_int8(const std::int8_t* p) {
      const hn::Rebind<std::int8_t, D> d;
      return Bits(hn::BitCast(U(), hn::PromoteTo(I(), hn::LoadU(d, p))));
    }
    static HWY_INLINE Bits load_uint8(const std::uint8_t* p) {
      const hn::Rebind<std::uint8_t, D> d;
      return Bits(hn::PromoteTo(U(), hn::LoadU(d, p)));
    }
    // The factors of even lanes and of odd ones, each in the lower half of 64 bits.
    struct Factor {
      using Product = hn::RepartitionToWide<U>;
      hn::Vec<Product> even, odd;
      Factor() = default;
      HWY_INLINE explicit Factor(Bits b)
          : even(hn::BitCast(Product(), b.u)), odd(hn::ShiftRight<32>(hn::BitCast(Product(), b.u))) {}
      HWY_INLINE Factor(hn::Vec<Product> e, hn::Vec<Product> o) : even(e), odd(o) {}
      friend HWY_INLINE Factor operator*(Factor a, std::uint32_t b) {
        auto factor = hn::Set(U(), b);
        return {hn::MulEven(hn::BitCast(U(), a.even), factor), hn::MulEven(hn::BitCast(U(), a.odd), factor)};
      }
      friend HWY_INLINE Factor operator^(Factor a, Factor b) {
        return {hn::Xor(a.even, b.even), hn::Xor(a.odd, b.odd)};
      }
      friend HWY_INLINE Factor operator^(Factor a, Bits b) {
        auto bits = hn::BitCast(Product(), b.u);
        return {hn::Xor(a.even, bits), hn::Xor(a.odd, bits)};
      }
      HWY_INLINE Factor upper() const { return {hn::ShiftRight<32>(even), hn::ShiftRight<32>(odd)}; }
    };
    // Of each 128 bits the lanes 0, 2, 1 and 3 have a group in the first, second, … quarter of all: what store_groups
    // puts together from them is then in order.
    static HWY_INLINE Bits groups() {
      constexpr std::uint32_t kQuarter = kLanes / 4, kFirst[] = {0, 2 * kQuarter, kQuarter, 3 * kQuarter};
      alignas(64) std::uint32_t of_lane[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) of_lane[lane] = kFirst[lane % 4] + static_cast<std::uint32_t>(lane / 4);
      return Bits(hn::Load(U(), of_lane));
    }
    // Words of an array of halves: x86 and Arm are little-endian.
    static HWY_INLINE void store_groups(const Factor* words, std::uint16_t* p) {
      using Product = Factor::Product;
      auto two = [](hn::Vec<Product> low, hn::Vec<Product> high) {
        return hn::BitCast(Product(), hn::OddEven(hn::BitCast(U(), hn::ShiftLeft<32>(high)), hn::BitCast(U(), low)));
      };
      auto store = [&](int quarter, hn::Vec<Product> groups) {
        hn::StoreU(hn::BitCast(U(), groups), U(), reinterpret_cast<std::uint32_t*>(p) + quarter * kLanes);
      };
      auto even01 = two(words[0].even, words[1].even), even23 = two(words[2].even, words[3].even);
      auto odd01 = two(words[0].odd, words[1].odd), odd23 = two(words[2].odd, words[3].odd);
      store(0, hn::InterleaveLower(Product(), even01, even23));
      store(1, hn::InterleaveUpper(Product(), even01, even23));
      store(2, hn::InterleaveLower(Product(), odd01, odd23));
      store(3, hn::InterleaveUpper(Product(), odd01, odd23));
    }
    friend HWY_INLINE Bits operator+(Bits a, Bits b) { return Bits(hn::Add(a.u, b.u)); }
    friend HWY_INLINE Bits operator-(Bits a, Bits b) { return Bits(hn::Sub(a.u, b.u)); }
    friend HWY_INLINE Bits operator&(Bits a, Bits b) { return Bits(hn::And(a.u, b.u)); }
    friend HWY_INLINE Bits operator|(Bits a, Bits b) { return Bits(hn::Or(a.u, b.u)); }
    friend HWY_INLINE Bits operator^(Bits a, Bits b) { return Bits(hn::Xor(a.u, b.u)); }
    HWY_INLINE void store(std::uint32_t* p) const { hn::StoreU(u, U(), p); }
    friend HWY_INLINE Bits max(Bits a, Bits b) { return Bits(hn::Max(a.u, b.u)); }
    friend HWY_INLINE std::uint32_t max_of_lanes(Bits a) { return hn::GetLane(hn::MaxOfLanes(U(), a.u)); }
    template <int n>
    HWY_INLINE Bits shift_right() const {
      return Bits(hn::ShiftRight<n>(u));
    }
    template <int n>
    HWY_INLINE Bits shift_left() const {
      return Bits(hn::ShiftLeft<n>(u));
    }
    template <int n>
    HWY_INLINE Bits shift_right_signed() const {
      return Bits(hn::BitCast(U(), hn::ShiftRight<n>(hn::BitCast(I(), u))));
    }
  };
  using Mask = hn::Mask<D>;
  using Wide = LanePair;

  hn::Vec<D> x;

  Lanes() = default;
  HWY_INLINE explicit Lanes(hn::Vec<D> v) : x(v) {}
  HWY_INLINE explicit Lanes(float value) : x(hn::Set(D(), value)) {}
  static HWY_INLINE Lanes load(const float* p) { return Lanes(hn::LoadU(D(), p)); }
  HWY_INLINE void store(float* p) const { hn::StoreU(x, D(), p); }
  static HWY_INLINE Lanes from_bits(Bits b) { return Lanes(hn::BitCast(D(), b.u)); }
  HWY_INLINE Bits bits() const { return Bits(hn::BitCast(U(), x)); }
  static HWY_INLINE Lanes from_int(Bits b) { return Lanes(hn::ConvertTo(D(), hn::BitCast(I(), b.u))); }

  friend HWY_INLINE Lanes operator+(Lanes a, Lanes b) { return Lanes(hn::Add(a.x, b.x)); }
  friend HWY_INLINE Lanes operator-(Lanes a, Lanes b) { return Lanes(hn::Sub(a.x, b.x)); }
  friend HWY_INLINE Lanes operator*(Lanes a, Lanes b) { return Lanes(hn::Mul(a.x, b.x)); }
  friend HWY_INLINE Lanes operator/(Lanes a, Lanes b) { return Lanes(hn::Div(a.x, b.x)); }
  friend HWY_INLINE Lanes operator-(Lanes a) { return Lanes(hn::Neg(a.x)); }
  friend HWY_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return Lanes(hn::MulAdd(a.x, b.x, c.x)); }
#if HWY_TARGET == HWY_AVX3
  // Two steps of each lane's chain: a and b have two bf16 in each lane (pairs.h). Not an intrinsic: the instruction set
  // of this region lacks it, and who calls this has asked the machine.
  static HWY_INLINE Lanes fma_pairs(Lanes a, Lanes b, Lanes c) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(c.x.raw) : "v"(a.x.raw), "v"(b.x.raw));
    return c;
  }
#endif
  friend HWY_INLINE Lanes sqrt(Lanes a) { return Lanes(hn::Sqrt(a.x)); }
  friend HWY_INLINE Lanes abs(Lanes a) { return Lanes(hn::Abs(a.x)); }
  friend HWY_INLINE Mask operator>(Lanes a, Lanes b) { return hn::Gt(a.x, b.x); }
  friend HWY_INLINE Mask operator<(Lanes a, Lanes b) { return hn::Lt(a.x, b.x); }
  // Not hn::Max and hn::Min: what these do with a NaN depends on the instruction set.
  friend HWY_INLINE Lanes max(Lanes a, Lanes b) { return Lanes(hn::IfThenElse(hn::Gt(a.x, b.x), a.x, b.x)); }
  friend HWY_INLINE Lanes min(Lanes a, Lanes b) { return Lanes(hn::IfThenElse(hn::Lt(a.x, b.x), a.x, b.x)); }
  friend HWY_INLINE Bits select(Mask mask, Bits yes, Bits no) {
    return Bits(hn::IfThenElse(hn::RebindMask(U(), mask), yes.u, no.u));
  }
  friend HWY_INLINE Lanes select(Mask mask, Lanes yes, Lanes no) { return Lanes(hn::IfThenElse(mask, yes.x, no.x)); }
  friend HWY_INLINE Bits select_number(Lanes a, Bits yes, Bits no) {
    return Bits(hn::IfThenElse(hn::RebindMask(U(), hn::Eq(a.x, a.x)), yes.u, no.u));
  }
  friend HWY_INLINE Mask is_finite(Lanes a) { return hn::Lt(hn::Abs(a.x), hn::Inf(D())); }
  friend HWY_INLINE Bits select_finite(Lanes a, Bits yes, Bits no) { return select(is_finite(a), yes, no); }
};

// Two registers of neighbours, for encoding: what packs to half the width fills one register again.
struct LanePair {
  static constexpr int kLanes = 2 * Lanes::kLanes;
  using I16 = hn::Repartition<std::int16_t, Lanes::I>;

  struct Bits {
    Lanes::Bits low, high;
    HWY_INLINE Bits(Lanes::Bits first, Lanes::Bits second) : low(first), high(second) {}
    HWY_INLINE explicit Bits(std::uint32_t value) : low(value), high(value) {}
    static HWY_INLINE Bits load_lower16(const std::uint16_t* p) {
      return {Lanes::Bits::load_lower16(p), Lanes::Bits::load_lower16(p + Lanes::kLanes)};
    }
    HWY_INLINE void store_upper16(std::uint16_t* p) const {
      const hn::Repartition<std::uint16_t, Lanes::U> d;
      hn::StoreU(hn::ConcatOdd(d, hn::BitCast(d, high.u), hn::BitCast(d, low.u)), d, p);
    }
    HWY_INLINE void store_lower16(std::uint16_t* p) const {
      const hn::Repartition<std::uint16_t, Lanes::U> d;
      hn::StoreU(hn::ConcatEven(d, hn::BitCast(d, high.u), hn::BitCast(d, low.u)), d, p);
    }
    HWY_INLINE void store_int8(std::int8_t* p) const {
      const hn::Rebind<std::int8_t, decltype(I16())> d;
      hn::StoreU(hn::DemoteTo(d, as_int16()), d, p);
    }
    HWY_INLINE void store_uint8(std::uint8_t* p) const {
      const hn::Rebind<std::uint8_t, decltype(I16())> d;
      hn::StoreU(hn::DemoteTo(d, as_int16()), d, p);
    }
    friend HWY_INLINE Bits max(Bits a, Bits b) { return {max(a.low, b.low), max(a.high, b.high)}; }
    friend HWY_INLINE std::uint32_t max_of_lanes(Bits a) { return max_of_lanes(max(a.low, a.high)); }
    friend HWY_INLINE Bits operator+(Bits a, Bits b) { return {a.low + b.low, a.high + b.high}; }
    friend HWY_INLINE Bits operator-(Bits a, Bits b) { return {a.low - b.low, a.high - b.high}; }
    friend HWY_INLINE Bits operator&(Bits a, Bits b) { return {a.low & b.low, a.high & b.high}; }
    friend HWY_INLINE Bits operator|(Bits a, Bits b) { return {a.low | b.low, a.high | b.high}; }
    friend HWY_INLINE Bits operator^(Bits a, Bits b) { return {a.low ^ b.low, a.high ^ b.high}; }
    template <int n>
    HWY_INLINE Bits shift_right() const {
      return {low.shift_right<n>(), high.shift_right<n>()};
    }
    template <int n>
    HWY_INLINE Bits shift_left() const {
      return {low.shift_left<n>(), high.shift_left<n>()};
    }
    template <int n>
    HWY_INLINE Bits shift_right_signed() const {
      return {low.shift_right_signed<n>(), high.shift_right_signed<n>()};
    }

   private:
    // Of lanes that are ints of 16 bits: their lower halves, in order.
    HWY_INLINE hn::Vec<I16> as_int16() const {
      return hn::ConcatEven(I16(), hn::BitCast(I16(), high.u), hn::BitCast(I16(), low.u));
    }
  };

  Lanes low, high;

  HWY_INLINE LanePair(Lanes first, Lanes second) : low(first), high(second) {}
  static HWY_INLINE LanePair of(const Lanes* x) { return {x[0], x[1]}; }
  static HWY_INLINE LanePair load(const float* p) { return {Lanes::load(p), Lanes::load(p + Lanes::kLanes)}; }
  HWY_INLINE void store(float* p) const { low.store(p), high.store(p + Lanes::kLanes); }
  HWY_INLINE Bits bits() const { return {low.bits(), high.bits()}; }
  static HWY_INLINE LanePair from_bits(Bits b) { return {Lanes::from_bits(b.low), Lanes::from_bits(b.high)}; }

  HWY_INLINE explicit LanePair(float value) : low(value), high(value) {}
  friend HWY_INLINE LanePair operator+(LanePair a, LanePair b) { return {a.low + b.low, a.high + b.high}; }
  friend HWY_INLINE LanePair operator*(LanePair a, LanePair b) { return {a.low * b.low, a.high * b.high}; }
  static HWY_INLINE LanePair from_int(Bits b) { return {Lanes::from_int(b.low), Lanes::from_int(b.high)}; }
  friend HWY_INLINE LanePair fma(LanePair a, LanePair b, LanePair c) {
    return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
  }
  friend HWY_INLINE LanePair abs(LanePair a) { return {abs(a.low), abs(a.high)}; }
  friend HWY_INLINE LanePair sqrt(LanePair a) { return {sqrt(a.low), sqrt(a.high)}; }
  struct Mask {
    Lanes::Mask low, high;
  };
  friend HWY_INLINE Mask operator<(LanePair a, LanePair b) { return {a.low < b.low, a.high < b.high}; }
  friend HWY_INLINE Bits select(Mask mask, Bits yes, Bits no) {
    return {select(mask.low, yes.low, no.low), select(mask.high, yes.high, no.high)};
  }
  friend HWY_INLINE bool all_numbers(LanePair a) {
    const Lanes::D d;
    return hn::AllTrue(d, hn::And(hn::Eq(a.low.x, a.low.x), hn::Eq(a.high.x, a.high.x)));
  }
  friend HWY_INLINE bool all_finite(LanePair a) {
    return hn::AllTrue(Lanes::D(), hn::And(is_finite(a.low), is_finite(a.high)));
  }
  friend HWY_INLINE Bits select_finite(LanePair a, Bits yes, Bits no) {
    return {select_finite(a.low, yes.low, no.low), select_finite(a.high, yes.high, no.high)};
  }
  friend HWY_INLINE Bits select_number(LanePair a, Bits yes, Bits no) {
    return {select_number(a.low, yes.low, no.low), select_number(a.high, yes.high, no.high)};
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace forge::cpu
